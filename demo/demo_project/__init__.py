"""The Django project that the demo runs."""
