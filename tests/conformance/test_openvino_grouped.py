"""A convolution with a trained weight beside a frozen BatchNorm, on every provider: row 18 of the reported traps.

OpenVINO 2025.4 moves the constant per-channel product behind such a convolution into its weight, and whatever
convolution reads the same reshaped weight then reads the scaled one: the gradient comes out scaled, silently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session

HEIGHT, WIDTH = 9, 8


@dataclass(frozen=True)
class Grouped:
    """A Conv, or a ConvTranspose, from `channels` to `out` channels."""

    channels: int
    out: int
    group: int
    kernel: int
    stride: int
    padding: int
    op: str = "Conv"
    dilation: int = 1
    more_padding: int = 0
    """At the end of each axis, over that at the beginning."""

    @property
    def weight(self) -> list[int]:
        first, second = (self.out, self.channels) if self.op == "Conv" else (self.channels, self.out)
        return [first, second // self.group, self.kernel, self.kernel]

    @property
    def attributes(self) -> dict[str, object]:
        return {
            "group": self.group,
            "strides": [self.stride] * 2,
            "dilations": [self.dilation] * 2,
            "pads": [self.padding] * 2 + [self.padding + self.more_padding] * 2,
        }


CASES = {
    "depthwise stride 2": Grouped(6, 6, 6, 3, 2, 2),
    "depthwise stride 2, as a matrix": Grouped(6, 6, 6, 5, 2, 2),
    "depthwise stride 1": Grouped(6, 6, 6, 3, 1, 1),
    "depthwise stride 1, as a matrix": Grouped(6, 6, 6, 7, 1, 1),
    "depthwise 1x1": Grouped(6, 6, 6, 1, 1, 0),
    "depthwise 1x1 stride 2": Grouped(6, 6, 6, 1, 2, 0),
    "depthwise with a multiplier": Grouped(3, 6, 3, 3, 1, 1),
    "depthwise with a multiplier 1x1": Grouped(3, 6, 3, 1, 1, 0),
    "depthwise with a multiplier stride 2": Grouped(3, 6, 3, 3, 2, 1),
    "one filter a group": Grouped(6, 3, 3, 3, 1, 1),
    "one filter a group 1x1": Grouped(6, 3, 3, 1, 1, 0),
    "groups stride 1": Grouped(6, 8, 2, 3, 1, 1),
    "groups stride 2": Grouped(6, 8, 2, 3, 2, 1),
    "groups 1x1": Grouped(6, 8, 2, 1, 1, 0),
    "groups 1x1 stride 2": Grouped(6, 8, 2, 1, 2, 0),
    "groups stride 3": Grouped(4, 6, 2, 2, 3, 0),
    "dense stride 2": Grouped(5, 8, 1, 3, 2, 1),
    "dense 1x1": Grouped(5, 8, 1, 1, 1, 0),
    "dense dilated": Grouped(6, 8, 1, 3, 1, 2, dilation=2),
    "groups dilated, asymmetric": Grouped(6, 8, 2, 3, 1, 1, dilation=2, more_padding=1),
    "depthwise stride 2, asymmetric": Grouped(6, 6, 6, 3, 2, 0, more_padding=1),
    "transposed depthwise": Grouped(6, 6, 6, 3, 2, 1, "ConvTranspose"),
    "transposed groups": Grouped(6, 8, 2, 3, 1, 1, "ConvTranspose"),
    "transposed groups 1x1": Grouped(6, 8, 2, 1, 1, 0, "ConvTranspose"),
    "transposed dense": Grouped(5, 8, 1, 3, 2, 1, "ConvTranspose"),
}


def gradients_model(case: Grouped, before: bool, behind: bool) -> bytes:
    """y, d/dx and d/dw of the sum of y² with y = conv(x * a, w) * c + b, without `a` or `c` where not asked for."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="grouped")
    op = builder(graph)
    rng = np.random.default_rng(0)
    x = add_input(op, "x", ir.DataType.FLOAT, [3, case.channels, HEIGHT, WIDTH])
    w = add_input(op, "w", ir.DataType.FLOAT, case.weight)

    def constant(name: str, size: int) -> ir.Value:
        values = rng.uniform(1.5, 3, (1, size, 1, 1)).astype(np.float32)
        return op.builder.initializer(ir.tensor(values), name=name)

    start = op.Mul(x, constant("a", case.channels)) if before else x
    y = getattr(op, case.op)(start, w, **case.attributes)
    y = op.Mul(y, constant("c", case.out)) if behind else y
    y = op.Add(y, constant("b", case.out))
    found = backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x, w])
    for value, name in ((y, "y"), (found[x], "dx"), (found[w], "dw")):
        value.name = name
        graph.outputs.append(value)
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


@pytest.mark.parametrize(
    ("before", "behind"), [(True, True), (True, False), (False, True)], ids=["before and behind", "before", "behind"]
)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_cpu(case: str, before: bool, behind: bool, provider: str) -> None:
    model, rng = gradients_model(CASES[case], before, behind), np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((3, CASES[case].channels, HEIGHT, WIDTH)).astype(np.float32),
        "w": rng.standard_normal(CASES[case].weight).astype(np.float32),
    }
    names = ["y", "dx", "dw"]
    expected = open_session(model, Execution("cpu", threads=1)).session.run(names, feeds)
    found = open_session(model, Execution(provider, threads=1)).session.run(names, feeds)
    for name, own, other in zip(names, found, expected, strict=True):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max(), name
