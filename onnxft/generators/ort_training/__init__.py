"""The ort-training generator: onnxruntime-training 1.19.2 builds the graphs, in an environment of its own."""
