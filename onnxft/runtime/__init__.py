"""The run half: providers, sessions, engines and checkpoints; onnxruntime and numpy only."""
