"""What a case of a lowering is, and how it is run before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxft.arrays import Array
from onnxft.graph.opset import convert

Spec = tuple[int, ...] | Array | None
"""An input: a shape is drawn from the normal distribution, an array is itself, None is absent."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """One use of an operator in a graph of an opset."""

    op: str
    opset: int
    inputs: tuple[Spec, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    constant: tuple[int, ...] = ()
    """Inputs that are initializers."""
    domain: str = ""
    batch: tuple[int, ...] = (0,)
    """Inputs whose axis 0 may be symbolic."""
    by: str = ""
    """`runtime` or `reference` where the other lacks the operator or computes it wrongly; "" asks both."""
    after: str = ""
    """The same of the converted graph."""
    stays: bool = False
    """Whether an operator of that name stays, in the form of opset 18."""
    unknown: bool = False
    """Whether a dimension of the result may be unknown."""
    torch: Callable[..., Any] | None = None
    """The same in torch, where its gradient is compared."""
    note: str = ""

    @property
    def name(self) -> str:
        shapes = "-".join("none" if x is None else _spell(x) for x in self.inputs)
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return " ".join(part for part in (self.op, str(self.opset), shapes, attrs, self.note) if part)

    @property
    def values(self) -> list[Array | None]:
        rng = np.random.default_rng(sum(map(ord, self.name)))
        return [
            rng.normal(size=x).astype(np.float32) if isinstance(x, tuple) else None if x is None else np.asarray(x)
            for x in self.inputs
        ]


def _spell(x: tuple[int, ...] | Array) -> str:
    return "x".join(map(str, x if isinstance(x, tuple) else x.shape)) or "scalar"


def model_of(case: Lowered, *, symbolic: bool = False) -> onnx.ModelProto:
    """Inputs x<i>, outputs y<i>."""
    names, inputs, initializers = [], [], []
    for i, x in enumerate(case.values):
        names.append("" if x is None else f"x{i}")
        if x is None:
            continue
        if i in case.constant:
            initializers.append(numpy_helper.from_array(x, f"x{i}"))
        else:
            shape: list[int | str] = list(x.shape)
            if symbolic and i in case.batch:
                shape[0] = "batch"
            inputs.append(helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="node", domain=case.domain, **case.attrs)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=y) for y in outputs], initializers)
    imports = [helper.make_opsetid("", case.opset)] + ([helper.make_opsetid(case.domain, 1)] if case.domain else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    if not case.domain and onnx.defs.has(case.op) and not onnx.defs.get_schema(case.op, case.opset).deprecated:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return model


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 18; it passes the checker."""
    loaded = ir.serde.deserialize_model(model)
    convert(loaded)
    result = ir.serde.serialize_model(loaded)
    result.ir_version = 10
    typed = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(typed)
    return typed


def fed(case: Lowered) -> dict[str, Array]:
    return {f"x{i}": x for i, x in enumerate(case.values) if x is not None and i not in case.constant}


def run(
    model: onnx.ModelProto, inputs: Mapping[str, Array], by: str, names: Sequence[str] | None = None
) -> list[Array]:
    """Outputs by `runtime` or `reference`."""
    if by == "reference":
        return ReferenceEvaluator(model).run(names, dict(inputs))  # type: ignore[return-value]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, dict(inputs))  # type: ignore[no-any-return]


def unknown_dims(model: onnx.ModelProto) -> list[str]:
    """Values of floats some dimension of which has neither a size nor a name."""
    found = []
    for info in [*model.graph.value_info, *model.graph.output]:
        tensor = info.type.tensor_type
        if tensor.elem_type != TensorProto.INT64 and (
            not tensor.HasField("shape") or any(not d.WhichOneof("value") for d in tensor.shape.dim)
        ):
            found.append(info.name)
    return found


def close(actual: Array, expected: Array, tolerance: float = 1e-6) -> None:
    """Equal to `tolerance` of the largest value."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-30))
