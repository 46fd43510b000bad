"""Management commands: they parse, call one function, present."""
