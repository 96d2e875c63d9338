"""The work of a training step, counted on the model: what no graph that computes it can go below.

flops: 2 x multiply-adds of the forward pass, of the data gradients and of the weight gradients that are needed.
bytes: of all other operators, each input read and each output written once; on the way back the gradients of their
outputs read, and those of their inputs written. The loss and the optimizer are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.backward import nodes_before, nodes_between
from onnxft.graph.builder import is_float
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH, Loss, dimension_size
from onnxft.step.multiply_adds import UNCOUNTED, Shapes, factors, is_product, multiply_adds
from onnxft.step.select import Selection
from onnxft.step_work import Amount, StepWork


def step_work(forward: Forward, selection: Selection, loss: Loss, batch_size: int) -> StepWork | None:
    """The work of a step of `batch_size` rows, other dimensions at the size of the example; None where one is unknown
    or an operator is none of those that are counted.
    """
    graph = forward.train.graph
    y = dict(zip(forward.outputs, graph.outputs, strict=False))[loss.output]
    xs = [graph.initializers[name] for name in selection.trainable if name in graph.initializers]
    return work_between(xs, y, {BATCH: batch_size, **forward.dimensions})


def work_between(xs: Collection[ir.Value], y: ir.Value, sizes: Mapping[str, int]) -> StepWork | None:
    """The work of computing `y`, and from its gradient those of the parameters `xs`.

    Args:
        xs: what is trained.
        y: what the loss reads.
        sizes: {symbolic dimension: size}.
    """
    producer = y.producer()
    if producer is None or producer.graph is None:
        return None
    before = nodes_before(y)
    nodes = [node for node in producer.graph if node in before]
    if any(node.op_type in UNCOUNTED or node.domain or _has_body(node) for node in nodes):
        return None
    needs = _Needs(xs, y, nodes)
    try:
        return _count(nodes, y, needs, lambda value: _known_dims(value, sizes))
    except GradientError:
        return None


VIEWS = {"Expand", "Flatten", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that move nothing: who reads their result may read their input through strides."""
_SELECTIONS = ("Gather", "GatherElements", "GatherND")
"""Operators that read no more of their input than they return."""
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod",
    "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
"""BatchNormalization too: with the running statistics it is a line for each channel."""


# ----- what needs a gradient -----


class _Needs:
    """Which values need a gradient, and of what kind."""

    def __init__(self, xs: Collection[ir.Value], y: ir.Value, nodes: Iterable[ir.Node]) -> None:
        self._xs = set(xs)
        self.path = set(nodes_between(xs, y))
        self._fed: set[ir.Value] = set()
        for node in nodes:
            if any(v is not None and self.is_data(v) for v in node.inputs):
                self._fed.update(node.outputs)

    def gradient(self, value: ir.Value | None) -> bool:
        """Whether the gradient of `value` is computed."""
        return is_float(value) and value is not None and (value in self._xs or value.producer() in self.path)

    def is_data(self, value: ir.Value) -> bool:
        """Whether `value` depends on the batch; else it is a parameter or made of parameters."""
        return value in self._fed or (value.is_graph_input() and value not in self._xs)


# ----- the count -----


def _count(nodes: Sequence[ir.Node], y: ir.Value, needs: _Needs, shape: Shapes) -> StepWork:
    flops, moved = dict.fromkeys(("forward", "data", "weight"), 0), dict.fromkeys(("forward", "data", "weight"), 0)
    for node in filter(is_product, nodes):
        count = 2 * multiply_adds(node, shape)
        flops["forward"] += count
        for x in factors(node):
            if x is not None and node in needs.path and needs.gradient(x):
                flops["data" if needs.is_data(x) else "weight"] += count
    for run in _runs(nodes, y):
        moved["forward"] += sum(_bytes(v, shape) for v in run.outputs)
        moved["forward"] += sum(
            min(_bytes(v, shape), sum(_bytes(part, shape) for part in parts)) for v, parts in run.inputs.items()
        )
        written = [v for v in run.inputs if run.nodes & needs.path and needs.gradient(v)]
        for v in written:
            moved["data" if needs.is_data(v) else "weight"] += _bytes(v, shape)
        if written:
            kind = "data" if any(map(needs.is_data, written)) else "weight"
            moved[kind] += sum(_bytes(v, shape) for v in run.outputs if needs.gradient(v))
    return StepWork(*(Amount(flops[part], moved[part]) for part in flops))


@dataclass(frozen=True)
class _Run:
    """An operator, or several elementwise ones in a row."""

    nodes: set[ir.Node]
    inputs: dict[ir.Value, set[ir.Value]]
    """{value: views or selections of it that are read, or itself}"""
    outputs: list[ir.Value]
    """What others read."""


def _runs(nodes: Sequence[ir.Node], y: ir.Value) -> list[_Run]:
    """All operators but multiplications and views. Elementwise operators of which one alone reads the other count as
    one: the model's Gelu is five operators in opset 18.
    """
    viewed: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if node.op_type in VIEWS:
            source = node.inputs[0]
            assert source is not None
            viewed.update(dict.fromkeys(node.outputs, viewed.get(source, source)))
    counted = [node for node in nodes if node.op_type not in VIEWS]
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in counted:
        for x in node.inputs:
            if x is not None:
                readers.setdefault(viewed.get(x, x), []).append(node)
    y = viewed.get(y, y)
    first: dict[ir.Node, ir.Node] = {}  # the node that stands for the run of a node
    members: dict[ir.Node, set[ir.Node]] = {node: {node} for node in counted if not is_product(node)}
    for node in counted:
        value = node.outputs[0]
        behind = readers.get(value, [])
        if value is not y and all(n.op_type in ELEMENTWISE for n in (node, *behind)):
            for reader in behind:
                one, other = first.get(node, node), first.get(reader, reader)
                if one is not other:
                    members[one] |= members.pop(other)
                    first.update(dict.fromkeys(members[one], one))
    return [_run(own, viewed, readers, y) for own in members.values()]


def _run(
    own: set[ir.Node],
    viewed: Mapping[ir.Value, ir.Value],
    readers: Mapping[ir.Value, Sequence[ir.Node]],
    y: ir.Value,
) -> _Run:
    inputs: dict[ir.Value, set[ir.Value]] = {}
    for node in own:
        for index, x in enumerate(node.inputs):
            if x is None or (source := viewed.get(x, x)).producer() in own:
                continue
            part = node.outputs[0] if index == 0 and node.op_type in _SELECTIONS else x
            inputs.setdefault(source, set()).add(part)
    outputs = [v for node in own for v in node.outputs if v is y or set(readers.get(v, ())) - own]
    return _Run(own, inputs, outputs)


# ----- helpers -----


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _known_dims(value: ir.Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    known = [None if d is None else dimension_size(d, sizes) for d in dims(value)]
    if None in known:
        raise GradientError(f"the size of '{value.name}' with the shape {list(dims(value))} is unknown")
    return tuple(d for d in known if d is not None)


def _bytes(value: ir.Value, shape: Shapes) -> int:
    assert value.dtype is not None
    return math.ceil(math.prod(shape(value)) * value.dtype.itemsize)
