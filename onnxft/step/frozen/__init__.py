"""Frozen weights stored in fewer bytes, and widened in the graph where they are read."""
