"""Element types that opset 18 does not know, or that an operator took up after it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.lowering.registry import OPSET, refusal

_KNOWN = {ir.DataType(i) for i in range(1, 17)}
"""Those of opset 18: up to bfloat16, without 8-bit floats and integers below 8 bits."""


def check_known(model: ir.Model) -> None:
    """ModelError if a value or a constant has a type that opset 18 does not know."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            if value.dtype is not None and value.dtype not in _KNOWN:
                kind = "initializer" if value.is_initializer() else "input"
                raise ModelError(
                    f"the {kind} '{value.name}' has the element type {value.dtype}, which opset {OPSET} does not know. "
                    "Export the model in float32 or float16, unquantized."
                )
        for node in graph:
            for dtype in _types(node):
                if dtype not in _KNOWN:
                    raise refusal(
                        node,
                        f"has to do with the element type {dtype}, which opset {OPSET} does not know",
                        "Export the model in float32 or float16, unquantized",
                    )


def check_taken(node: ir.Node) -> None:
    """ModelError if the operator takes the type of an input or output only after opset 18."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            if value is None or not isinstance(value.type, ir.TensorType):
                continue
            if f"tensor({_spell(value.type.dtype)})" not in formals[min(i, len(formals) - 1)].types:
                raise refusal(
                    node,
                    f"has '{value.name}' of type {value.type.dtype}, which it takes only after opset {OPSET}",
                    f"Export the model in float32, or with opset_version={OPSET}",
                )


def _types(node: ir.Node) -> Iterator[ir.DataType]:
    yield from (v.dtype for v in node.outputs if v.dtype is not None)
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            yield attribute.as_tensor().dtype
        elif name in ("to", "dtype", "output_dtype") and attribute.type == ir.AttributeType.INT:
            yield ir.DataType(attribute.as_int())


def _spell(dtype: ir.DataType) -> str:
    return dtype.name.lower()
