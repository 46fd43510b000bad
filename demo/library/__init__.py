"""A small app of the demo project: the packages that a machine has installed."""
