"""Pure decisions and plain types: no Django, no engine, no I/O."""
