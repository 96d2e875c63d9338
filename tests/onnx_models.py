"""Bare ONNX files written as text: `save(text, path, weight=array, ...)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def save(body: str, path: Path, opset: int = 18, ir_version: int = 10, **weights: np.ndarray) -> Path:
    """A model from the text of its graph: `g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }`."""
    graph = onnx.parser.parse_graph(body)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    path.write_bytes(model.SerializeToString())
    return path


def random(*shape: int, seed: int = 0, scale: float = 0.5) -> np.ndarray:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


MLP = """
g (float[N,7] x) => (float[N,5] y) {
    h1 = Gemm(x, fc1_weight, fc1_bias)
    h2 = Tanh(h1)
    y = Gemm<transB=1>(h2, fc2_weight, fc2_bias)
}
"""


def mlp_weights() -> dict[str, np.ndarray]:
    return {
        "fc1_weight": random(7, 11), "fc1_bias": random(11), "fc2_weight": random(5, 11), "fc2_bias": random(5),
    }  # fmt: skip


def save_mlp(path: Path) -> Path:
    return save(MLP, path, **mlp_weights())
