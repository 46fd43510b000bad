"""The embedded executor for development: jobs as plain local processes, the same verbs, no isolation.

A "container" is a directory. A small process of its own, the shim, runs the program, records what it
writes and how it ends, and outlives the worker. `shim`, `program`, `procfs`, `statedir` and `bells`
use nothing but the standard library, so that a shim starts in some 50 ms.
"""
