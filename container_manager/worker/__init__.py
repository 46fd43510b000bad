"""The worker: one supervisor, one agent per host."""
