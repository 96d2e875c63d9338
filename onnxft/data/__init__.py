"""Data sets: what a model is trained and evaluated on, as batches by name."""
