"""Run Django management commands, and any other command, in containers: one container per job."""

__version__ = "0.1.0"
