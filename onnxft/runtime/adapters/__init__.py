"""Low-rank adapters outside an artifact: written, read, and merged into the weights that they adapt."""
