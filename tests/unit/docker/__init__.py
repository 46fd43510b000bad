"""The Docker driver, without an engine."""
