"""Graphs that multiply in half precision: their types, and their numbers on the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import onnxft
from onnxft.errors import ModelError
from onnxft.manifest import GraphRole, HalfPrecision
from onnxft.manifest_file import read_manifest
from onnxft.runtime.execution import Execution
from onnxft.runtime.precision import graph_of
from onnxft.step.build import build_step
from onnxft.step.precision import _EXACT, _PRODUCTS, LOWERED, lower
from onnxft.step.step_graph import StepGraph

TYPES: dict[HalfPrecision, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
RESOLUTION: dict[HalfPrecision, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
MODELS = ("mlp", "convnet", "shared_conv", "gru_states", "lstm_long", "twins")
SHAPES: dict[str, tuple[int, ...]] = {"mlp": (7,), "convnet": (1, 24, 24), "twins": (7,)}
ROWS = 4
OF_WHOLE_MODELS = [role for role in LOWERED if role != "trunk"]


@pytest.fixture(scope="module")
def built(planned: Callable[..., Any]) -> Callable[[str], dict[GraphRole, StepGraph]]:
    """(factory of models.py) -> its graphs in float32."""

    @cache
    def make(name: str) -> dict[GraphRole, StepGraph]:
        made = planned(name, dropout=False)
        return build_step(made.forward, made.selection, made.loss, made.optimizer)

    return make


def parts(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from parts(attribute.g)


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.output, *graph.value_info)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("role", OF_WHOLE_MODELS)
@pytest.mark.parametrize("name", MODELS)
def test_products_are_half_and_little_else(
    name: str, role: GraphRole, precision: HalfPrecision, built: Callable[[str], dict[GraphRole, StepGraph]]
) -> None:
    before = ir.to_proto(built(name)[role].model).SerializeToString()
    lowered = lower(built(name)[role], precision)
    assert ir.to_proto(built(name)[role].model).SerializeToString() == before, "the graph in float32 was changed"
    model = onnx.shape_inference.infer_shapes(ir.to_proto(lowered.model), check_type=True, strict_mode=True)
    onnx.checker.check_model(model)
    outer: dict[str, int] = {}
    products = 0
    for graph in parts(model.graph):
        types = outer | element_types(graph)
        outer = outer or types
        for node in graph.node:
            found = {types.get(n) for n in (*node.input, *node.output) if n}
            if node.op_type in _PRODUCTS[precision]:
                assert found == {TYPES[precision]}, (node.op_type, node.name)
                products += 1
            elif TYPES[precision] in found:
                allowed = {"Cast", *_EXACT[precision], *(["Add"] if precision == "float16" else [])}
                assert node.op_type in allowed, (node.op_type, node.name)
    assert products


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_ports_stay_as_they_are(
    name: str, precision: HalfPrecision, built: Callable[[str], dict[GraphRole, StepGraph]]
) -> None:
    for role in OF_WHOLE_MODELS:
        graph, lowered = built(name)[role], lower(built(name)[role], precision)
        more = ("magnitude",) if (role, precision) == ("gradients", "float16") else ()
        assert lowered.inputs == graph.inputs
        assert lowered.outputs[: len(graph.outputs)] == graph.outputs
        assert tuple(p.role for p in lowered.outputs[len(graph.outputs) :]) == more
        proto = ir.to_proto(lowered.model).graph
        for ports, values in ((lowered.inputs, proto.input), (lowered.outputs, proto.output)):
            assert [p.name for p in ports] == [v.name for v in values]
            types = [onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values]
            assert [p.dtype for p in ports] == types


def test_what_moves_between_products_stays_half(built: Callable[[str], dict[GraphRole, StepGraph]]) -> None:
    """Conv, Relu, Conv: one cast of the picture, none between; the float32 graph reads the second's result cast up."""
    nodes = list(ir.to_proto(lower(built("convnet")["eval"], "float16").model).graph.node)
    makers = {o: n for n in nodes for o in n.output}
    (relu,) = (n for n in nodes if n.op_type == "Relu")
    assert makers[relu.input[0]].op_type == "Conv"
    assert any(n.op_type == "Conv" and n.input[0] == relu.output[0] for n in nodes)


def test_accumulators_and_loss_are_added_in_float32(built: Callable[[str], dict[GraphRole, StepGraph]]) -> None:
    model = onnx.shape_inference.infer_shapes(ir.to_proto(lower(built("twins")["gradients"], "float16").model))
    types = element_types(model.graph)
    makers = {o: n for n in model.graph.node for o in n.output}
    gradients = [v.name for v in model.graph.output if v.name.endswith(".gradient")]
    assert gradients
    for name in (*gradients, "loss_sum", "weight_sum"):
        assert {types[n] for n in makers[name].input if n in types} <= {TensorProto.FLOAT, TensorProto.INT64}


def feeds_of(graph: StepGraph, made: Any, shape: tuple[int, ...], scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    initial = {
        n: v.const_value.numpy() for n, v in made.forward.train.graph.initializers.items() if v.const_value is not None
    }
    feeds: dict[str, np.ndarray] = {}
    for port in graph.inputs:
        match port.role:
            case "input":
                feeds[port.name] = rng.standard_normal((ROWS, *shape)).astype(np.float32)
            case "label":
                feeds[port.name] = rng.integers(0, 5, ROWS)
            case "sample_weight":
                feeds[port.name] = np.full(ROWS, scale, np.float32)
            case "parameter":
                feeds[port.name] = initial[port.parameter or ""]
            case _:
                feeds[port.name] = np.zeros([int(d) for d in port.shape], port.dtype)
    return feeds


def run(graph: StepGraph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = ReferenceEvaluator(ir.to_proto(graph.model)).run(None, feeds)
    return {p.name: np.asarray(v) for p, v in zip(graph.outputs, values, strict=True)}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_as_close_as_the_precision(
    name: str, precision: HalfPrecision, built: Callable[[str], dict[GraphRole, StepGraph]], planned: Callable[..., Any]
) -> None:
    graph, made = built(name)["gradients"], planned(name, dropout=False)
    feeds = feeds_of(graph, made, SHAPES[name])
    expected, found = run(graph, feeds), run(lower(graph, precision), feeds)
    gradients = [p.name for p in graph.outputs if p.role == "gradient"]
    largest = max(np.linalg.norm(expected[n]) for n in gradients)
    errors = {
        n: np.linalg.norm(found[n] - expected[n]) / np.linalg.norm(expected[n])
        for n in gradients
        if np.linalg.norm(expected[n]) > 1e-4 * largest
    }
    # Each of a chain of products rounds what it reads and gives, an activation at a kink may change sides, and the
    # reference evaluator adds up in half precision too: conv1.weight sums 2304 products that mostly cancel.
    assert max(errors.values()) < 32 * RESOLUTION[precision], errors
    assert max(errors.values()) > RESOLUTION[precision] / 16, "these are the gradients of float32"
    assert found["weight_sum"] == expected["weight_sum"]
    assert found["loss_sum"] == pytest.approx(expected["loss_sum"], rel=4 * RESOLUTION[precision])
    if precision == "float16":
        assert found["magnitude"] == pytest.approx(sum(np.abs(found[n]).sum() for n in gradients), rel=1e-5)


def test_a_scale_saves_what_float16_rounds_to_zero(
    built: Callable[[str], dict[GraphRole, StepGraph]], planned: Callable[..., Any]
) -> None:
    """Weights of 1e-7 make gradients below the least float16, which 2**16 times as large are far above it."""
    graph, made = built("mlp")["gradients"], planned("mlp", dropout=False)
    lowered = lower(graph, "float16")
    exact = run(graph, feeds_of(graph, made, (7,), 1e-7))
    plain, scaled = (run(lowered, feeds_of(graph, made, (7,), 1e-7 * s)) for s in (1.0, 2.0**16))
    name = "fc1.weight.gradient"
    assert np.linalg.norm(plain[name] - exact[name]) > 0.1 * np.linalg.norm(exact[name])
    assert np.linalg.norm(scaled[name] / 2.0**16 - exact[name]) < 4e-3 * np.linalg.norm(exact[name])


@pytest.mark.parametrize("name", SHAPES)
def test_scaled_weights_scale_every_sum_exactly(
    name: str, built: Callable[[str], dict[GraphRole, StepGraph]], planned: Callable[..., Any]
) -> None:
    graph, made = built(name)["gradients"], planned(name, dropout=False)
    one, scaled = (run(graph, feeds_of(graph, made, SHAPES[name], s)) for s in (1.0, 2.0**16))
    for port in graph.outputs:
        np.testing.assert_array_equal(scaled[port.name], one[port.name] * np.float32(2**16), err_msg=port.name)


def test_an_overflow_is_not_finite_in_the_magnitude(
    built: Callable[[str], dict[GraphRole, StepGraph]], planned: Callable[..., Any]
) -> None:
    graph, made = lower(built("mlp")["gradients"], "float16"), planned("mlp", dropout=False)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(run(graph, feeds_of(graph, made, (7,), 2.0**24))["magnitude"])
    assert np.isfinite(run(graph, feeds_of(graph, made, (7,)))["magnitude"])


def test_a_graph_without_products_is_refused() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [3])
    node = ir.node("Relu", [x])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="flat"), ir_version=10)
    with pytest.raises(ModelError, match="'flat' has none of Gemm, MatMul in float32, so that bfloat16 would change"):
        lower(StepGraph(model, (), ()), "bfloat16")


@pytest.mark.parametrize(("precision", "has_trunk"), [("float16", True), ("bfloat16", False)])
def test_a_trunk_without_products_of_the_precision_stays_in_float32(
    precision: HalfPrecision, has_trunk: bool, tmp_path: Path
) -> None:
    """Its products are convolutions, which CUDA does not have in bfloat16."""
    artifact = onnxft.export(*models.digits(), tmp_path / "digits", trainable=["6.*"], precision=[precision])
    manifest = read_manifest(artifact)
    assert set(manifest.half[precision]) == {"gradients", "eval", *(["trunk"] if has_trunk else [])}
    assert graph_of("trunk", manifest, Execution("cuda", precision)).precision == (
        precision if has_trunk else "float32"
    )
