"""The engine of the ort-training generator."""
