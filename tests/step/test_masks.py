"""Masks of gradients are products where no gradient can be infinite, and choices where one can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import onnxft
from onnxft.runtime.session import TrainSession

ROWS = 4


class Net(nn.Module):
    """A linear layer, the activation, something behind it, and a head."""

    def __init__(self, act: str, rest: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.act, self.rest = act, rest
        self.first, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = {"relu": torch.relu, "relu6": nn.functional.relu6}[self.act](x)
        x = {
            "nothing": lambda x: x,
            "norm": self.norm,
            "square": lambda x: x**2 / 3,
            "sqrt": torch.sqrt,
            "ratio": lambda x: 1 / (x + 1),
            "power": lambda x: x**0.5,
            "log": lambda x: torch.log(x + 1),
        }[self.rest](x)
        return self.head(x)


@pytest.mark.parametrize("act", ["relu", "relu6"])
@pytest.mark.parametrize(
    ("rest", "choices"),
    [("nothing", 0), ("norm", 0), ("square", 0), ("sqrt", 1), ("ratio", 1), ("power", 1), ("log", 1)],
)
def test_gradients_are_those_of_torch(act: str, rest: str, choices: int, tmp_path: Path) -> None:
    net, x = Net(act, rest), torch.randn(ROWS, 5) * 3
    artifact = onnxft.export(net, x, tmp_path / "a", input_names=["x"])
    graph = onnx.load(artifact / "gradients.onnx", load_external_data=False).graph
    masks = [n for n in graph.node if n.op_type == "Where" and len(n.input) == 3 and not n.input[1].startswith("l")]
    assert len([n for n in masks if "Greater" in n.input[0] or "And" in n.input[0]]) == choices
    labels = np.arange(ROWS) % 3
    with TrainSession(artifact, threads=1) as session:
        gradients = session.gradients({"x": x.numpy(), "labels": labels})
    nn.functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
    assert (net.first(x) < 0).any(), "some values are left out"
    for name, gradient in gradients.items():
        expected = net.get_parameter(name).grad
        assert expected is not None
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.isfinite(gradient).all()
