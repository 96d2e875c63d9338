"""Reverse-mode differentiation of ONNX graphs into standard ONNX operators; pure."""
