"""The benchmark: configuration -> sides, each in a process of its own -> report -> renderers."""
