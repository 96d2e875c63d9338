"""Names, weights, functions, subgraphs, bodies and refusals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from lowering_cases import close, converted, run
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from onnxft.errors import ModelError
from onnxft.grad.backward import backward
from onnxft.graph.builder import builder
from onnxft.graph.normalize import IR_VERSION, normalize
from onnxft.graph.opset import OPSET, convert
from onnxft.graph.shapes import dims

RNG = np.random.default_rng(2)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name: str, shape: Sequence[int | str] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int,
    weights: dict[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
    ir_version: int = 10,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"{op_type}/{outputs[0]}", **attributes)


def refused(proto: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as err:
        convert(ir.serde.deserialize_model(proto))
    return str(err.value)


def small(opset: int) -> onnx.ModelProto:
    """Two products, a newer or older form between them."""
    weights = {
        "layer.weight": RNG.normal(size=(4, 5)).astype(np.float32),
        "head": RNG.normal(size=(5, 3)).astype(np.float32),
    }
    middle = node("Gelu", ["h"], ["a"]) if opset >= 20 else node("Sigmoid", ["h"], ["a"])
    mean = node("ReduceMean", ["a"], ["m"], axes=[1]) if opset < 18 else node("ReduceMean", ["a", "axes"], ["m"])
    if opset >= 18:
        weights["axes"] = np.array([1])
    nodes = [
        node("MatMul", ["x", "layer.weight"], ["h"]),
        middle,
        mean,
        node("Sub", ["a", "m"], ["c"]),
        node("MatMul", ["c", "head"], ["y"]),
    ]
    return model(nodes, [info("x", ["rows", 4])], [info("y", ["rows", 3])], opset, weights)


@pytest.mark.parametrize("opset", range(13, onnx.defs.onnx_opset_version() + 1))
def test_names_weights_and_numbers_are_kept_from_every_opset(opset: int) -> None:
    proto = small(opset)
    loaded = ir.serde.deserialize_model(proto)
    weights = {name: value.const_value for name, value in loaded.graph.initializers.items()}
    convert(loaded)
    assert loaded.opset_imports[""] == OPSET
    for name, tensor in weights.items():
        assert loaded.graph.initializers[name].const_value is tensor
    assert [(v.name, str(v.shape)) for v in loaded.graph.inputs] == [("x", "[rows,4]")]
    assert [(v.name, str(v.shape)) for v in loaded.graph.outputs] == [("y", "[rows,3]")]
    names = {v.name for n in loaded.graph for v in n.outputs}
    assert {"h", "a", "m", "c", "y"} <= names
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    by = "runtime" if opset <= 24 else "reference"
    (expected,), (actual,) = run(proto, {"x": x}, by), run(ir.serde.serialize_model(loaded), {"x": x}, "runtime")
    close(actual, expected)


@pytest.mark.parametrize("opset", [12, 9, onnx.defs.onnx_opset_version() + 1])
def test_other_opsets_are_refused(opset: int) -> None:
    assert f"the model has opset {opset}; onnxft reads opset 13 to {onnx.defs.onnx_opset_version()}" in refused(
        model([node("Relu", ["x"], ["y"])], [info("x", ["b", 4])], [info("y", ["b", 4])], opset)
    )


def test_a_large_weight_is_not_read(tmp_path: Path) -> None:
    """Weights of any size stay where they are: this file does not even exist."""
    loaded = ir.serde.deserialize_model(small(22))
    value = loaded.graph.initializers["layer.weight"]
    shape = ir.Shape([4, 1 << 20])
    value.shape = shape
    value.const_value = ir.ExternalTensor(
        tmp_path / "absent.bin", 0, 4 << 22, ir.DataType.FLOAT, shape=shape, name="layer.weight"
    )
    loaded.graph.initializers["head"].const_value = ir.ExternalTensor(
        tmp_path / "absent.bin", 0, 12 << 20, ir.DataType.FLOAT, shape=ir.Shape([1 << 20, 3]), name="head"
    )
    loaded.graph.initializers["head"].shape = ir.Shape([1 << 20, 3])
    convert(loaded)
    assert {n.op_type for n in loaded.graph} >= {"Erf"}


def test_normalize_reads_a_newer_opset_and_ir_version() -> None:
    loaded = ir.serde.deserialize_model(small(23))
    loaded.ir_version = 13
    normalize(loaded, {"layer.weight", "head"})
    assert (loaded.ir_version, loaded.opset_imports) == (IR_VERSION, {"": OPSET})
    assert {"layer.weight", "head"} <= set(loaded.graph.initializers)
    onnx.checker.check_model(ir.serde.serialize_model(loaded))


def function(name: str, nodes: Sequence[onnx.NodeProto], opset: int, domains: Sequence[str] = ()) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_function("own", name, ["x"], ["y"], nodes, imports)


@pytest.mark.parametrize(("outer", "inner"), [(18, 13), (18, 20), (21, 15), (13, 22), (18, 18), (17, 17)])
def test_a_function_is_read_in_its_own_opset(outer: int, inner: int) -> None:
    mean = node("ReduceMean", ["x"], ["m"], axes=[1])
    body = (
        [mean] if inner < 18 else [node("Constant", [], ["a"], value_ints=[1]), node("ReduceMean", ["x", "a"], ["m"])]
    )
    body += [node("Gelu", ["m"], ["g"]) if inner >= 20 else node("Tanh", ["m"], ["g"]), node("Add", ["x", "g"], ["y"])]
    calls = [
        helper.make_node("Outer", ["x"], ["h"], name="first", domain="own"),
        helper.make_node("Middle", ["h"], ["k"], name="second", domain="own"),
        node("GlobalMaxPool", ["k"], ["y"]),
    ]
    nested = [helper.make_node("Middle", ["x"], ["y"], domain="own")]
    functions = [function("Middle", body, inner), function("Outer", nested, inner, ["own"])]
    proto = model(
        calls, [info("x", ["b", 3, 4])], [info("y", ["b", 3, 1])], outer, functions=functions, domains=["own"]
    )
    result = converted(proto)
    assert not result.functions
    assert {n.domain for n in result.graph.node} == {""}
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    (actual,) = run(result, {"x": x}, "runtime")
    # In torch: the runtime reads the function in the opset of the model.
    y = torch.tensor(x)
    for _ in range(2):
        mean = y.mean(1, keepdim=True)
        y = y + (functional.gelu(mean) if inner >= 20 else mean.tanh())
    close(actual, y.amax(2, keepdim=True).numpy())


def test_a_function_of_an_opset_that_is_not_read_is_refused() -> None:
    calls = [helper.make_node("Old", ["x"], ["y"], domain="own")]
    functions = [function("Old", [node("Relu", ["x"], ["y"])], 11)]
    proto = model(calls, [info("x", ["b", 4])], [info("y", ["b", 4])], 18, functions=functions, domains=["own"])
    assert "the function 'Old' has opset 11; onnxft reads opset 13 to" in refused(proto)


def test_subgraphs_are_converted() -> None:
    then = helper.make_graph([node("Gelu", ["h"], ["t"])], "then", [], [info("t", ["b", 4])])
    other = helper.make_graph([node("Swish", ["h"], ["e"], alpha=0.5)], "else", [], [info("e", ["b", 4])])
    nodes = [
        node("Gelu", ["x"], ["h"], approximate="tanh"),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, [info("x", ["b", 4]), info("c", [], BOOL)], [info("y", ["b", 4])], 24)
    result = converted(proto)
    branches = [a.g for n in result.graph.node if n.op_type == "If" for a in n.attribute]
    assert [[o.name for o in b.output] for b in branches] == [["e"], ["t"]]
    assert not {"Gelu", "Swish"} & {n.op_type for graph in (result.graph, *branches) for n in graph.node}
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        (expected,), (actual,) = run(proto, feeds, "reference"), run(result, feeds, "runtime")
        close(actual, expected)


def test_the_body_of_a_loop_is_converted() -> None:
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["on"]),
            node("ReduceSumSquare", ["s"], ["q"], axes=[1]),
            node("Add", ["s", "q"], ["t"]),
        ],
        "body",
        [info("i", [], INT64), info("go", [], BOOL), info("s", ["b", 4])],
        [info("on", [], BOOL), info("t", ["b", 4])],
    )
    weights = {"times": np.array(2), "true": np.array(True)}
    nodes = [node("Loop", ["times", "true", "x"], ["y"], body=body)]
    proto = model(nodes, [info("x", ["b", 4])], [info("y", ["b", 4])], 16, weights)
    x = 0.1 * RNG.normal(size=(2, 4)).astype(np.float32)
    result = converted(proto)
    (expected,), (actual,) = run(proto, {"x": x}, "runtime"), run(result, {"x": x}, "runtime")
    close(actual, expected)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention_becomes_its_body(rule: str) -> None:
    names = ["q", "k", "v", "", *(["g"] if "gated" in rule else [""]), *(["beta"] if "delta" in rule else [])]
    nodes = [
        node("LinearAttention", names, ["y", "state"], q_num_heads=2, kv_num_heads=2, update_rule=rule),
        node("Gelu", ["y"], ["z"]),
    ]
    sizes = {"q": (2, 3, 8), "k": (2, 3, 8), "v": (2, 3, 6), "g": (2, 3, 2), "beta": (2, 3, 2)}
    feeds = {n: RNG.uniform(-0.5, 0.5, sizes[n]).astype(np.float32) for n in names if n}
    proto = model(nodes, [info(n, sizes[n]) for n in feeds], [info("z", [2, 3, 6]), info("state", [2, 2, 4, 3])], 27)
    result = converted(proto)
    assert not {"LinearAttention", "Gelu"} & {n.op_type for n in result.graph.node}
    for actual, expected in zip(run(result, feeds, "runtime"), run(proto, feeds, "reference"), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_a_causal_convolution_becomes_its_body(activation: str) -> None:
    sizes = {"x": (2, 3, 5), "w": (3, 1, 4), "b": (3,), "past": (2, 3, 3)}
    feeds = {n: RNG.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    nodes = [node("CausalConvWithState", list(sizes), ["y", "state"], activation=activation)]
    outputs = [info("y", [2, 3, 5]), info("state", [2, 3, 3])]
    proto = model(nodes, [info(n, s) for n, s in sizes.items()], outputs, 27)
    result = converted(proto)
    assert "Conv" in {n.op_type for n in result.graph.node}
    for actual, expected in zip(run(result, feeds, "runtime"), run(proto, feeds, "reference"), strict=True):
        close(actual, expected)


def test_a_grid_whose_batch_is_joined_at_run_time() -> None:
    nodes = [
        node("Shape", ["theta"], ["n"], start=0, end=1),
        node("Concat", ["n", "rest"], ["size"], axis=0),
        node("AffineGrid", ["theta", "size"], ["y"]),
    ]
    weights = {"rest": np.array([3, 4, 5])}
    proto = model(nodes, [info("theta", ["b", 2, 3])], [info("y", ["b", 4, 5, 2])], 20, weights)
    feeds = {"theta": RNG.normal(size=(2, 2, 3)).astype(np.float32)}
    (expected,), (actual,) = run(proto, feeds, "reference"), run(converted(proto), feeds, "runtime")
    close(actual, expected)


def test_a_single_aligned_place_is_the_middle_as_in_torch() -> None:
    weights = {"size": np.array([2, 3, 1, 4])}
    proto = model(
        [node("AffineGrid", ["theta", "size"], ["y"], align_corners=1)],
        [info("theta", ["b", 2, 3])], [info("y", None)], 20, weights,
    )  # fmt: skip
    theta = RNG.normal(size=(2, 2, 3)).astype(np.float32)
    (y,) = run(converted(proto), {"theta": theta}, "runtime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it changed this in version 1.3
        expected = functional.affine_grid(torch.tensor(theta), [2, 3, 1, 4], align_corners=True)
    close(y, expected.numpy())


@pytest.mark.parametrize(
    "op",
    [
        node("Dropout", ["x", "ratio", "training"], ["y"]),
        node("RandomUniformLike", ["x"], ["y"], high=2.0),
        node("RandomNormalLike", ["x"], ["y"], scale=2.0),
        node("Bernoulli", ["x"], ["y"]),
    ],
    ids=lambda op: op.op_type,
)
@pytest.mark.parametrize("opset", [15, 22, 28])
def test_random_operators_stay_as_they_are(op: onnx.NodeProto, opset: int) -> None:
    weights = {"ratio": np.array(0.3, np.float32), "training": np.array(True)}
    proto = model([op], [info("x", ["b", 4])], [info("y", ["b", 4])], opset, weights)
    (kept,) = converted(proto).graph.node
    assert kept == op


def test_training_statistics_of_opset_13() -> None:
    c = {n: np.ones(3, np.float32) for n in ("scale", "bias", "mean", "var")}
    bn = node("BatchNormalization", ["x", *c], ["y", "m", "v", "sm", "sv"], momentum=0.8)
    inputs, outputs = [info("x", ["b", 3, 4])], [info("y", ["b", 3, 4]), info("m", [3]), info("v", [3])]
    loaded = ir.serde.deserialize_model(model([bn], inputs, outputs, 13, c))
    convert(loaded)
    (kept,) = loaded.graph
    assert kept.attributes.get_int("training_mode") == 1
    assert kept.attributes.get_float("momentum") == pytest.approx(0.8)
    assert [v.name for v in kept.outputs] == ["y", "m", "v"]
    asked = model([bn], inputs, [*outputs, info("sm", [3])], 13, c)
    assert "'BatchNormalization' (node 'BatchNormalization/y', output 'y') hands on its saved statistics" in refused(
        asked
    )


def unary(op_type: str, opset: int, shape: Sequence[int | str] = ("b", 4), **attributes: object) -> onnx.ModelProto:
    return model([node(op_type, ["x"], ["y"], **attributes)], [info("x", shape)], [info("y", None)], opset)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (unary("BitCast", 26, to=TensorProto.INT32), "'BitCast' (node 'BitCast/y', output 'y') reinterprets bits"),
        (unary("Cast", 19, to=TensorProto.FLOAT8E4M3FN), "the element type FLOAT8E4M3FN, which opset 18 does not know"),
        (unary("Cast", 21, to=TensorProto.INT4), "the element type INT4"),
        (
            model(
                [node("Identity", ["x"], ["y"])],
                [info("x", [3], TensorProto.FLOAT8E5M2)],
                [info("y", [3], TensorProto.FLOAT8E5M2)],
                19,
            ),
            "the input 'x' has the element type FLOAT8E5M2",
        ),
        (
            model(
                [node("Sin", ["x"], ["y"])],
                [info("x", ["b"], TensorProto.BFLOAT16)],
                [info("y", ["b"], TensorProto.BFLOAT16)],
                22,
            ),
            "'Sin' (node 'Sin/y', output 'y') has 'x' of type BFLOAT16, which it takes only after opset 18",
        ),
        (
            model(
                [node("GridSample", ["x", "g"], ["y"])],
                [info("x", ["b", 2, 3, 4, 5]), info("g", ["b", 2, 2, 2, 3])],
                [info("y", None)],
                20,
            ),
            "samples other than pictures",
        ),
        (
            model(
                [node("CumProd", ["x", "a"], ["y"])], [info("x", ["b", 4])], [info("y", None)], 26, {"a": np.array(0)}
            ),
            "only where dimension 0 of 'x' ['b', 4] is static",
        ),
        (
            model(
                [node("Attention", ["x", "x", "x"], ["y"], q_num_heads=3, kv_num_heads=2)],
                [info("x", ["b", 5, 12])],
                [info("y", None)],
                23,
            ),
            "has 3 query heads for 2 key heads",
        ),
        (
            model(
                [node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="half_pixel_symmetric")],
                [info("x", ["b", 3, 5])],
                [info("y", None)],
                19,
                {"s": np.array([1, 1, 1.5], np.float32)},
            ),
            "is half_pixel_symmetric with scale 1.5 of 5",
        ),
        (
            unary("AveragePool", 19, ("b", 2, 9), kernel_shape=[3], dilations=[2], auto_pad="SAME_UPPER"),
            "Export it with explicit pads",
        ),
        (unary("Gelu", 18), "'Gelu' (node 'Gelu/y', output 'y') is no operator of opset 18"),
    ],
)
def test_refusals_name_operator_node_and_reason(proto: onnx.ModelProto, words: str) -> None:
    assert words in refused(proto)


MICROSOFT = "com.microsoft"


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (
            helper.make_node("Attention", ["x", "w", "", "", "past"], ["y", "p"], "n", num_heads=2, domain=MICROSOFT),
            "keeps keys and values",
        ),
        (
            helper.make_node("FusedMatMul", ["x", "w"], ["y"], "n", transBatchA=1, domain=MICROSOFT),
            "transposes batch axes",
        ),
        (
            helper.make_node("FusedGemm", ["x", "w"], ["y"], "n", activation="Mystery", domain=MICROSOFT),
            "has the unknown activation 'Mystery'",
        ),
    ],
)
def test_refusals_of_fused_operators(op: onnx.NodeProto, words: str) -> None:
    inputs = [info("x", ["b", 3, 4]), info("w", [4, 12]), info("past", [2, "b", 2, 3, 2])]
    message = refused(model([op], inputs, [info("y", None)], 18, domains=[MICROSOFT]))
    assert f"'com.microsoft.{op.op_type}' (node 'n', output 'y') {words}" in message
    assert "Export the model without runtime optimizations" in message


def test_other_fused_operators_stay() -> None:
    op = helper.make_node("BiasSplitGelu", ["x", "w"], ["y"], "n", domain=MICROSOFT)
    loaded = ir.serde.deserialize_model(
        model([op], [info("x", ["b", 4]), info("w", [4])], [info("y", None)], 20, domains=[MICROSOFT])
    )
    convert(loaded)
    assert [n.op_type for n in loaded.graph] == ["BiasSplitGelu"]


@pytest.mark.parametrize("outputs", [["y", "", "", "sum"], ["y", "", "", ""], ["y"]])
def test_outputs_without_a_name_stay_absent(outputs: list[str]) -> None:
    op = helper.make_node("SkipLayerNormalization", ["x", "x", "w"], outputs, "n", domain=MICROSOFT)
    asked = [info(name, ["b", 3, 4]) for name in outputs if name]
    weights = {"w": RNG.normal(size=4).astype(np.float32)}
    proto = model([op], [info("x", ["b", 3, 4])], asked, 18, weights, domains=[MICROSOFT])
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    found = zip(run(converted(proto), {"x": x}, "runtime"), run(proto, {"x": x}, "runtime"), strict=True)
    for actual, expected in found:
        close(actual, expected)


def test_a_cache_that_is_not_asked_for_stays_absent() -> None:
    op = node("Attention", ["q", "k", "v"], ["y", "", "", "shown"])
    sizes = {"q": (2, 4, 3, 6), "k": (2, 4, 5, 6), "v": (2, 4, 5, 7)}
    feeds = {n: RNG.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    proto = model(
        [op], [info(n, s) for n, s in sizes.items()], [info("y", (2, 4, 3, 7)), info("shown", (2, 4, 3, 5))], 23
    )
    for actual, expected in zip(run(converted(proto), feeds, "runtime"), run(proto, feeds, "runtime"), strict=True):
        close(actual, expected)


class Block(nn.Module):
    """A transformer block as newer exporters write it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.RMSNorm(8, eps=1e-6), nn.Linear(8, 24)
        self.group = nn.GroupNorm(2, 8)
        self.out = nn.Sequential(
            nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU("tanh"), nn.SiLU(), nn.Linear(16, 8)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return self.out(self.group((x + y).transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_a_block_that_torch_exports(opset: int) -> None:
    torch.manual_seed(1)
    block, x = Block().eval(), torch.randn(3, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            block, (x,), dynamo=True, opset_version=opset, optimize=False, verbose=False,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
        )  # fmt: skip
    loaded = program.model
    parameters = {name: p.detach().numpy() for name, p in block.named_parameters()}
    written = {n.op_type for n in loaded.graph}
    assert opset < 23 or {"Attention", "RMSNormalization"} <= written
    normalize(loaded, parameters)
    for name, value in parameters.items():
        np.testing.assert_array_equal(loaded.graph.initializers[name].const_value.numpy(), value)
    assert all(None not in dims(v) for n in loaded.graph for v in n.outputs)
    op = builder(loaded.graph)
    values = [loaded.graph.initializers[name] for name in parameters]
    gradients = backward(op, op.ReduceSum(op.Mul(loaded.graph.outputs[0], loaded.graph.outputs[0]), keepdims=0), values)
    loaded.graph.outputs.extend(op.Identity(gradients[v]) for v in values)
    y, *found = run(ir.serde.serialize_model(loaded), {loaded.graph.inputs[0].name: x.numpy()}, "runtime")
    expected = block(x)
    expected.square().sum().backward()
    close(y, expected.detach().numpy(), 1e-5)
    for dx, parameter in zip(found, block.parameters(), strict=True):
        close(dx, parameter.grad.numpy(), 2e-5)
