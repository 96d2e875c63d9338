"""Pads and BatchNorm become part of a trained convolution, and the gradients stay those of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from models import as_if_trained
from onnx_models import random, save
from torch import nn

import onnxft
from onnxft.runtime.session import TrainSession
from onnxft.step.fold import fold_padding

ROWS = 3


class Blocks(nn.Module):
    """Convolutions of one, some and all channels, each behind a pad of its own and before a BatchNorm."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=bias)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, stride=(1, 2), bias=bias)
        self.thin = nn.Conv2d(6, 4, 1, groups=2, bias=bias)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, 1, 2, 1))
        x = nn.functional.relu6(self.norms[0](self.wide(x)))
        x = nn.functional.pad(x, (1, 2, 0, 1))
        x = nn.functional.relu6(self.norms[1](self.deep(x)))
        return self.head(self.norms[2](self.thin(x)).mean((2, 3)))


def blocks(bias: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(4)
    net = Blocks(bias).eval()
    as_if_trained(net.norms)
    return net, torch.randn(ROWS, 2, 9, 7)


def operators(artifact: Path) -> list[str]:
    return [node.op_type for node in onnx.load(artifact / "train.onnx", load_external_data=False).graph.node]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"trainable": ["*"], "frozen": ["norms.*"]}, 0),
        ({"trainable": ["*"]}, 3),
        ({"trainable": ["norms.*", "head.*"]}, 3),  # constant weights keep the fast kernels
        ({"trainable": ["deep.*", "norms.0.*", "head.*"]}, 2),
        ({"trainable": ["*"], "train_batchnorm": ["norms.1"]}, 2),  # written as arithmetic
        ({"method": "lora:2,head", "lora_targets": ["wide.*"]}, 3),
    ],
    ids=["frozen", "trained", "norms", "some", "statistics", "lora"],
)
def test_gradients_are_those_of_torch(how: dict[str, Any], left: int, bias: bool, tmp_path: Path) -> None:
    net, x = blocks(bias)
    artifact = onnxft.export(net, x, tmp_path / "a", input_names=["x"], **how)
    found = operators(artifact)
    assert found.count("BatchNormalization") == left
    labels = np.arange(ROWS) % 3
    with TrainSession(artifact, threads=1) as session:
        gradients = session.gradients({"x": x.numpy(), "labels": labels})
    if "train_batchnorm" in how:
        net.norms[1].train()
    nn.functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
    own = {n: g for n, g in gradients.items() if "lora" not in n}
    assert own
    for name, gradient in own.items():
        expected = net.get_parameter(name).grad
        assert expected is not None
        largest = max(float(expected.abs().max()), 1e-2)  # a bias before statistics of the batch has none
        assert np.abs(gradient - expected.numpy()).max() < 2e-5 * largest, name


@pytest.mark.parametrize(
    ("body", "pads"),
    [
        ("p = Pad(x, amounts) y = Conv<pads=[1,0,2,1]>(p, w)", [2, 2, 5, 5]),
        ("p = Pad(x, amounts, zero) y = Conv(p, w)", [1, 2, 3, 4]),
        ("p = Pad(x, two, zero, axes) y = Conv<strides=[2,1]>(p, w)", [2, 1, 4, 3]),
        ("p = Pad(x, amounts, one) y = Conv(p, w)", None),
        ('p = Pad<mode="edge">(x, amounts) y = Conv(p, w)', None),
        ("p = Pad(x, channels) y = Conv(p, three)", None),
        ("p = Pad(x, cut) y = Conv(p, w)", None),
        ("p = Pad(x, given) y = Conv(p, w)", None),
        ('p = Pad(x, amounts) y = Conv<auto_pad="SAME_UPPER">(p, w)', None),
        ("p = Relu(x) y = Conv(p, w)", None),
    ],
)
def test_padding(body: str, pads: list[int] | None, tmp_path: Path) -> None:
    text = f"g (float[N,2,6,5] x, int64[8] given) => (float[N,3,a,b] y) {{ {body} }}"
    path = save(
        text, tmp_path / "m.onnx", w=random(3, 2, 3, 2), three=random(3, 3, 3, 2),
        amounts=np.array([0, 0, 1, 2, 0, 0, 3, 4]), two=np.array([1, 2, 3, 4]), axes=np.array([-1, 2]),
        channels=np.array([0, 1, 1, 2, 0, 0, 3, 4]), cut=np.array([0, 0, -1, 2, 0, 0, 3, 4]),
        zero=np.array(0, np.float32), one=np.array(1, np.float32),
    )  # fmt: skip
    model = ir.load(path)
    fold_padding(model.graph)
    (conv,) = [node for node in model.graph if node.op_type == "Conv"]
    x = conv.inputs[0]
    assert x is not None
    assert (x.name == "x") == (pads is not None)
    if pads is not None:
        assert list(conv.attributes.get_ints("pads") or []) == pads
