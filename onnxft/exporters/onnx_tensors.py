"""Which constants of an ONNX file are weights: the file does not say."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.forward import Tensor

_STATISTICS = {"BatchNormalization": (3, 4)}
"""{operator: inputs that are running statistics}"""
_SETTINGS = {
    "Resize": (1, 2), "Upsample": (1,), "Pad": (2,), "Clip": (1, 2), "Dropout": (1,), "OneHot": (2,),
    "Range": (0, 1, 2), "NonMaxSuppression": (3, 4), "QuantizeLinear": (1,), "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6),
}  # fmt: skip
"""{operator: float inputs that say how it works: scales, bounds, fill values}"""


def find_tensors(graph: ir.Graph, constants: Collection[str]) -> dict[str, Tensor]:
    """Parameters and buffers of a graph, by the names that the file gives them.

    Every float initializer with at least one axis is a parameter. So is the value of a Constant node with
    more than one element, since some exporters write weights as such; scalars, and what an operator takes
    as a setting, are not. Running statistics of a BatchNormalization are buffers.

    Args:
        graph: its Constant nodes already are initializers.
        constants: names of those that were Constant nodes.

    Raises:
        ModelError: there is no parameter.
    """
    found = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        if not shape or (name in constants and tensor.size <= 1) or 0 in shape or _is_setting(value):
            continue
        kind = "buffer" if _reads(value, _STATISTICS) else "parameter"
        found[name] = Tensor(name, shape, tensor.dtype.numpy().name, kind)
    if not any(t.kind == "parameter" for t in found.values()):
        types = sorted({v.const_value.dtype.name for v in graph.initializers.values() if v.const_value is not None})
        raise ModelError(
            "the model has no floating-point weights, so there is nothing to train (its constants are "
            f"{', '.join(types) or 'none'}). A quantized model is trained before it is quantized."
        )
    return found


def _is_setting(value: ir.Value) -> bool:
    uses = list(value.uses())
    return bool(uses) and all(use.idx in _SETTINGS.get(use.node.op_type, ()) for use in uses)


def _reads(value: ir.Value, table: Mapping[str, tuple[int, ...]]) -> bool:
    return any(use.idx in table.get(use.node.op_type, ()) for use in value.uses())
