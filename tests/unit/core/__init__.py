"""The pure core: no Django, no engine, no I/O."""
