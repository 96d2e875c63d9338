"""Facts and helpers about ONNX graphs (onnx-ir): pure, and below everything else of the build half."""
