"""Regions of trained convolutions lie channels first where that pays, and give the numbers and gradients of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from models import as_if_trained
from onnx_ir.passes import common
from torch import nn

import onnxft
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import dims, set_dims
from onnxft.runtime.session import TrainSession
from onnxft.step import build
from onnxft.step.channels_first import put_channels_first

ROWS = 3


# ----- one convolution -----


@pytest.mark.parametrize(
    ("weight", "shape", "outputs", "attributes", "left"),
    [
        ((6, 1, 5, 3), (6, 3), (5, 3), {"pads": [1, 1, 2, 1]}, []),
        ((6, 1, 3, 3), (5, 4), (3, 2), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, []),
        ((6, 1, 3), (6,), (2,), {"dilations": [2]}, []),
        ((6, 1, 3, 3), (6, 5), (4, 3), {}, []),
        ((6, 1, 3, 3), (6, 7), (4, 5), {}, ["Conv"]),  # more than two positions a tap
        ((12, 1, 3, 3), (5, 4), (3, 2), {}, ["Conv"]),  # two filters a channel
        ((6, 3, 3, 3), (5, 4), (3, 2), {}, ["Conv"]),  # several channels a group
        ((9, 6, 1, 1), (1, 2), (1, 2), {}, ["Conv"]),  # 1x1: transposing its ends costs more than its gradient saves
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_convolution_is_a_region(
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    outputs: tuple[int, ...],
    attributes: dict[str, list[int]],
    left: list[str],
    bias: bool,
) -> None:
    channels = 6
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, ["batch", channels, *shape])
    w = add_input(op, "w", ir.DataType.FLOAT, weight)
    given = [x, w, *([add_input(op, "b", ir.DataType.FLOAT, weight[:1])] if bias else [])]
    y = op.Conv(*given, group=channels // weight[1], **attributes)
    set_dims(y, ["batch", weight[0], *outputs])
    graph.outputs.append(y)
    before = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    put_channels_first(op, [w], graph.outputs)
    assert dims(graph.outputs[0]) == ("batch", weight[0], *outputs)
    if left:
        assert graph.outputs[0] is y
    else:
        assert not y.uses()
        graph.remove(y.producer())
    assert [node.op_type for node in graph if node.op_type == "Conv"] == left
    after = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    rng = np.random.default_rng(2)
    feeds = {v.name: rng.standard_normal([4 if d == "batch" else d for d in dims(v)]).astype(np.float32) for v in given}
    first, second = (
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0] for model in (before, after)
    )
    assert second.shape == (4, weight[0], *outputs)
    assert np.abs(first - second).max() <= 1e-6 * np.abs(first).max()


def test_a_single_picture_lies_channels_first_already() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, [1, 6, 5, 4])
    w = add_input(op, "w", ir.DataType.FLOAT, [6, 1, 3, 3])
    graph.outputs.append(op.ReduceMean(op.Conv(x, w, group=6), [2, 3]))
    put_channels_first(op, [w], graph.outputs)
    assert [node.op_type for node in graph] == ["Conv", "ReduceMean"]


# ----- which nodes are rewritten -----

WEIGHTS = {"w": (12, 8, 1, 1), "v": (10, 12, 1, 1), "d": (12, 1, 3, 3), "s": (10, 8, 2, 2)}
W = "b = Conv(x, w) "  # (N, 8, 1, 3) -> (N, 12, 1, 3)
D = "d1 = Conv<group=12, pads=[1, 1, 1, 1]>({}, d) "
V = "y = Conv({}, v) "


@pytest.mark.parametrize(
    ("body", "convolutions", "transposed"),
    [
        (W + D.format("b") + V.format("d1"), 0, 2),
        (W + "c = Clip(b, zero, six) " + D.format("c") + V.format("d1"), 0, 2),
        (W + D.format("b") + "e = Add(b, d1) " + V.format("e"), 0, 2),
        # a value for each channel, for each position and for all
        (W + "c = Mul(b, channels) " + D.format("c") + V.format("d1"), 0, 2),
        (W + "c = PRelu(b, slope) " + D.format("c") + V.format("d1"), 0, 2),
        (W + "c = Add(positions, b) " + D.format("c") + V.format("d1"), 0, 2),
        (W + "c = Sub(six, b) " + D.format("c") + V.format("d1"), 0, 2),
        # for each picture
        (W + "c = Mul(b, pictures) " + D.format("c") + V.format("d1"), 0, 3),
        (W + "m = ReduceMean(b, space) c = Mul(b, m) " + D.format("c") + V.format("d1"), 0, 2),
        (W + "m = GlobalAveragePool(b) c = Sub(m, b) " + D.format("c") + V.format("d1"), 0, 2),
        (W + D.format("b") + "e = Relu(d1) y = ReduceMean(e, space)", 0, 2),
        (W + D.format("b") + "e = Relu(d1) y = ReduceMean<keepdims=0>(e, space)", 0, 2),
        # a mean over channels ends a region, and so does what is not known
        (W + D.format("b") + "y = ReduceMean(d1, first)", 0, 2),
        (W + D.format("b") + "y = Softmax(d1)", 0, 2),
        # what is cheaper outside: a sum with another value that would be transposed, a 1x1 convolution alone
        (W + D.format("b") + "y = Add(d1, other)", 0, 2),
        (W + D.format("b") + "e = Softmax(d1) " + V.format("e"), 1, 2),
        # nothing pays
        (W + "c = Softmax(b) " + V.format("c"), 2, 0),
        ("y = Conv(x, s)", 1, 0),
        ("c = Relu(x) y = Conv<strides=[1, 2]>(c, w)", 1, 0),
        ("c = Relu(x) y = Conv<pads=[0, 0, 0, 1]>(c, w)", 1, 0),
        ("c = Relu(x) y = Conv(c, fixed)", 1, 0),
    ],
)  # fmt: skip
def test_which_regions(body: str, convolutions: int, transposed: int) -> None:
    body = body.replace("y = Conv(x, s)", "y = Conv<pads=[0, 0, 1, 0]>(x, s)")
    inputs = {"x": ("N", 8, 1, 3), "other": ("N", 12, 1, 3), "pictures": ("N", 1, 1, 1), "slope": (12, 1, 1), **WEIGHTS}
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in inputs.items())
    text = (
        f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]> g ({declared}) => (float[N,c,h,k] y) '
        "<float zero = {0}, float six = {6}, int64[2] space = {-1, 2}, int64[1] first = {1}, float[1,3] positions = "
        f"{{1,2,3}}, float[1,12,1,1] channels = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[1,8,1,1] fixed = "
        f"{{1,2,3,4,5,6,7,8}}> {{ {body} }}"
    )
    parsed = onnx.parser.parse_model(text.replace("[N,c,h,k] y", "[N,c] y") if "keepdims=0" in body else text)
    before = onnx.shape_inference.infer_shapes(parsed, strict_mode=True)
    model = ir.from_proto(before)
    graph = model.graph
    put_channels_first(builder(graph), [v for v in graph.inputs if v.name in WEIGHTS], graph.outputs)
    common.RemoveUnusedNodesPass()(model)
    found = [node.op_type for node in graph]
    assert (found.count("Conv"), found.count("Transpose")) == (convolutions, transposed)
    rng = np.random.default_rng(2)
    feeds = {n: rng.standard_normal([5 if d == "N" else d for d in s]).astype(np.float32) for n, s in inputs.items()}
    first, second = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (before, ir.to_proto(model))
    )
    assert first.shape == second.shape
    assert np.abs(first - second).max() <= 2e-6 * np.abs(first).max()


# ----- whole models -----


class Blocks(nn.Module):
    """Inverted bottlenecks, the second with a residual, from 4 x 3 pictures to 2 x 2; one squeezes and excites."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 30, 3, padding=1)
        self.expand = nn.Conv2d(30, 70, 1, bias=bias)
        self.deep = nn.Conv2d(70, 70, 5, stride=2, padding=2, groups=70, bias=bias)
        self.squeeze, self.excite = nn.Conv2d(70, 5, 1, bias=bias), nn.Conv2d(5, 70, 1, bias=bias)
        self.thin = nn.Conv2d(70, 20, 1, bias=bias)
        self.wide = nn.Conv2d(20, 33, 1, bias=bias)
        self.flat = nn.Conv2d(33, 33, 3, padding=1, groups=33, bias=bias)
        self.back = nn.Conv2d(33, 20, 1, bias=bias)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (70, 70, 20, 33, 33, 20))
        self.head = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.relu6(self.norms[0](self.expand(x)))
        x = nn.functional.hardswish(self.norms[1](self.deep(x)))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = self.norms[2](self.thin(x))
        y = nn.functional.relu6(self.norms[3](self.wide(x)))
        y = nn.functional.relu6(self.norms[4](self.flat(y)))
        x = x + self.norms[5](self.back(y))
        return self.head(torch.relu(x).mean((2, 3)))


class Plain(nn.Module):
    """Convolutions that no region pays for: dense, grouped, of large pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(2, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 6, 1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.deep(torch.relu(self.point(torch.relu(self.dense(x)))))).mean((2, 3)))


def blocks(bias: bool) -> tuple[Blocks, torch.Tensor]:
    torch.manual_seed(4)
    net = Blocks(bias).eval()
    as_if_trained(net.norms)
    return net, torch.randn(ROWS, 2, 4, 3)


def operators(artifact: Path) -> list[str]:
    return [node.op_type for node in onnx.load(artifact / "train.onnx", load_external_data=False).graph.node]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"trainable": ["*"], "frozen": ["norms.*"]}, 1),
        ({"trainable": ["*"], "frozen": ["norms.*", "stem.*"]}, 0),
        ({"trainable": ["*"], "frozen": ["norms.*", "thin.*"]}, 3),
        ({"trainable": ["*"], "frozen": ["norms.*"], "recompute": True, "blocks": ["expand", "wide"]}, 1),
    ],
    ids=["all", "stem", "between", "recompute"],
)
def test_gradients_are_those_of_torch(how: dict[str, Any], left: int, bias: bool, tmp_path: Path) -> None:
    net, x = blocks(bias)
    artifact = onnxft.export(net, x, tmp_path / "a", input_names=["x"], **how)
    assert operators(artifact).count("Conv") == left
    labels = np.arange(ROWS) % 3
    with TrainSession(artifact, threads=1) as session:
        gradients = session.gradients({"x": x.numpy(), "labels": labels})
    nn.functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
    assert gradients
    for name, gradient in gradients.items():
        expected = net.get_parameter(name).grad
        assert expected is not None
        assert np.abs(gradient - expected.numpy()).max() < 2e-5 * float(expected.abs().max()), name


def test_other_models_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    net, x = Plain(), torch.randn(ROWS, 2, 12, 11)
    first = onnxft.export(net, x, tmp_path / "a", input_names=["x"])
    monkeypatch.setattr(build, "put_channels_first", lambda *_: None)
    second = onnxft.export(net, x, tmp_path / "b", input_names=["x"])
    for role in ("train", "gradients"):
        assert (first / f"{role}.onnx").read_bytes() == (second / f"{role}.onnx").read_bytes()
