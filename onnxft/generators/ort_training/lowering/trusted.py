"""Operators whose gradient onnxruntime-training 1.19.2 has right, and in which form of them.

Found by running every case of `tests/grad` through it: `tools/ort_training_operators.py` writes the table that
`tests/ort_training/test_operators.py` holds against this file. Whatever is not here gets the native rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxft.graph.builder import PADDING_ROW, dims_equal
from onnxft.graph.shapes import dims

Trusts = Callable[[ir.Node, Collection[int]], bool]
"""(node, indices of the inputs whose gradient is asked for) -> whether that is right."""


def is_trusted(node: ir.Node, wanted: Collection[int]) -> bool:
    """Whether onnxruntime-training's own gradient of `node` for the inputs `wanted` is torch's."""
    if PADDING_ROW in node.metadata_props:  # of which its gradient knows nothing
        return False
    if node.op_type in _ALWAYS:
        return True
    condition = _IN_PART.get(node.op_type)
    return condition is not None and condition(node, wanted)


_ALWAYS = frozenset({
    "Abs", "Add", "Cast", "Concat", "Cos", "Div", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "GlobalAveragePool", "Identity", "LeakyRelu", "Log", "LogSoftmax", "MaxPool", "Mul",
    "Neg", "Reciprocal", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Sin", "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh",
    "Tile", "TopK", "Trilu", "Unsqueeze",
})  # fmt: skip


def _conv(node: ir.Node, wanted: Collection[int]) -> bool:
    """Its gradient kernel takes no padding where the node says SAME, and forgets values in three dimensions."""
    padding = node.attributes.get_string("auto_pad", "NOTSET")
    return not padding.startswith("SAME") and _rank(node, 0) <= 4


def _dropout(node: ir.Node, wanted: Collection[int]) -> bool:
    """It drops gradients where the node, in inference form, drops nothing."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    known = ir.convenience.get_const_tensor(training) if training is not None else None
    return known is not None and bool(known.numpy())


def _gemm(node: ir.Node, wanted: Collection[int]) -> bool:
    """A scalar C gets a gradient of shape (1,)."""
    return 2 not in wanted or _rank(node, 2) > 0


def _matmul(node: ir.Node, wanted: Collection[int]) -> bool:
    """It has no vectors."""
    return _rank(node, 0) > 1 and _rank(node, 1) > 1


def _layer_normalization(node: ir.Node, wanted: Collection[int]) -> bool:
    """It asks for a bias."""
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _reduce_sum(node: ir.Node, wanted: Collection[int]) -> bool:
    """It sums over all axes where `noop_with_empty_axes` says over none."""
    return not node.attributes.get_int("noop_with_empty_axes", 0)


def _slice(node: ir.Node, wanted: Collection[int]) -> bool:
    """Its kernel fails on a step backwards."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    known = ir.convenience.get_const_tensor(steps) if steps is not None else None
    return steps is None or (known is not None and bool((known.numpy() > 0).all()))


def _softmax_cross_entropy(node: ir.Node, wanted: Collection[int]) -> bool:
    """It knows the logits and the loss, but not the class weights and the log softmax."""
    return list(wanted) == [0] and not any(y.uses() or y.is_graph_output() for y in node.outputs[1:])


def _split(node: ir.Node, wanted: Collection[int]) -> bool:
    """It leaves out of the gradient what nothing reads."""
    return all(y.uses() for y in node.outputs)


def _transpose(node: ir.Node, wanted: Collection[int]) -> bool:
    """It does not know that axes are reversed by default."""
    return "perm" in node.attributes


def _where(node: ir.Node, wanted: Collection[int]) -> bool:
    """It does not sum over the axes along which an operand is broadcast."""
    return all((x := node.inputs[i]) is not None and dims_equal(x, dims(node.outputs[0])) for i in wanted)


_IN_PART: dict[str, Trusts] = {
    "Conv": _conv,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "ReduceSum": _reduce_sum,
    "Slice": _slice,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
    "Split": _split,
    "Transpose": _transpose,
    "Where": _where,
}


def trusted() -> tuple[str, ...]:
    """All of them, sorted."""
    return tuple(sorted({*_ALWAYS, *_IN_PART}))


def _rank(node: ir.Node, index: int) -> int:
    value = node.inputs[index]
    assert value is not None
    return len(dims(value))
