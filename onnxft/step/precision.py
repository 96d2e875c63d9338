"""Graphs that multiply in half precision: what providers without an option for it need.

Products take their operands cast down and give their result cast up. What only moves values between two products stays
in half precision, which is exact; everything else is float32 as before: reductions, normalisation, softmax, the loss,
and the accumulators. Parameters come in as float32 and are cast inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.errors import ModelError
from onnxft.graph.builder import builder
from onnxft.manifest import GraphRole, HalfPrecision, Port
from onnxft.step.step_graph import StepGraph

LOWERED: tuple[GraphRole, ...] = ("trunk", "gradients", "eval")
"""Roles that a lower precision has graphs of; the others change parameters by less than it can say."""

_TYPES: dict[HalfPrecision, ir.DataType] = {"bfloat16": ir.DataType.BFLOAT16, "float16": ir.DataType.FLOAT16}
# In opset 18 the CUDA provider has these alone in bfloat16; Conv came with opset 22.
_PRODUCTS: dict[HalfPrecision, frozenset[str]] = {
    "bfloat16": frozenset({"MatMul", "Gemm"}),
    "float16": frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"}),
}
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Slice", "Concat"})
_EXACT: dict[HalfPrecision, frozenset[str]] = {"bfloat16": _MOVES, "float16": _MOVES | {"Relu"}}
"""Operators for which it is the same to round what they read or what they give."""


def lower_all(step: Mapping[GraphRole, StepGraph], precision: HalfPrecision) -> dict[GraphRole, StepGraph]:
    """Those of `step` that a precision has graphs of; a trunk without products of its own runs in float32.

    Raises:
        ModelError: what is trained multiplies nothing that the precision could lower.
    """
    roles = [r for r in LOWERED if r in step and (r != "trunk" or _multiplies(step[r], precision))]
    return {role: lower(step[role], precision) for role in roles}


def lower(graph: StepGraph, precision: HalfPrecision) -> StepGraph:
    """A copy of `graph` that multiplies in `precision`; in float16 it says too whether the gradients are finite.

    Raises:
        ModelError: no product in float32 is in it.
    """
    model = graph.model.clone()
    biases = {p.name for p in graph.inputs if p.role == "parameter"} | {*model.graph.initializers}
    if not sum(_Lowering(part, precision, biases).run() for part in model.graphs()):
        names = ", ".join(sorted(_PRODUCTS[precision]))
        raise ModelError(
            f"the graph '{model.graph.name}' has none of {names} in float32, so that {precision} would change nothing. "
            "Export without this precision."
        )
    outputs = graph.outputs
    if precision == "float16" and any(p.role == "gradient" for p in outputs):
        outputs = (*outputs, _add_magnitude(model.graph, outputs))
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return StepGraph(model, graph.inputs, outputs)


def _multiplies(graph: StepGraph, precision: HalfPrecision) -> bool:
    """Whether a product of the precision is in it."""
    return any(n.op_type in _PRODUCTS[precision] and not n.domain for part in graph.model.graphs() for n in part)


def _add_magnitude(graph: ir.Graph, outputs: tuple[Port, ...]) -> Port:
    """Σ |g| over all accumulated gradients: finite where all of them are, and a single number to read."""
    op, named = builder(graph), {v.name: v for v in graph.outputs}
    norms = [op.ReduceL1(named[p.name], keepdims=0) for p in outputs if p.role == "gradient"]
    total = op.Sum(*norms)
    total.name, total.shape, total.dtype = "magnitude", ir.Shape([]), ir.DataType.FLOAT
    graph.outputs.append(total)
    return Port("magnitude", "magnitude", "float32", ())


class _Lowering:
    """One graph, or the body of a loop, on its way to half precision."""

    def __init__(self, graph: ir.Graph, precision: HalfPrecision, biases: Set[str | None]) -> None:
        self._graph, self._precision, self._type, self._biases = graph, precision, _TYPES[precision], biases
        self._products, self._exact = _PRODUCTS[precision], _EXACT[precision]
        self._halves: dict[ir.Value, ir.Value] = {}
        """{float32 value: itself in half precision}"""
        self._raised: set[ir.Value] = set()
        """float32 values that are a half one cast up, so that casting them down loses nothing."""

    def run(self) -> int:
        """Lower every product; how many there were."""
        count = 0
        for node in list(self._graph):
            if node.domain == "" and node.op_type in self._products and self._is_float32(node):
                for i, value in enumerate(node.inputs):
                    if value is not None:
                        node.replace_input_with(i, self._half(value))
                self._raise(node.outputs[0])
                count += 1
            elif self._precision == "float16" and self._is_bias(node):
                self._lower_bias(node)
        return count

    def _is_float32(self, node: ir.Node) -> bool:
        values = (*node.inputs, *node.outputs)
        return all(v is None or v.dtype == ir.DataType.FLOAT for v in values)

    def _raise(self, result: ir.Value) -> None:
        """`result` becomes half; whoever read it reads it cast up, under its name."""
        raised = self._append("Cast", [result], {"to": ir.DataType.FLOAT}, ir.DataType.FLOAT, result, "float32")
        result.replace_all_uses_with(raised, replace_graph_outputs=True)
        raised.producer().replace_input_with(0, result)  # type: ignore[union-attr]
        raised.name, result.name = result.name, self._name(result, self._precision)
        result.type = ir.TensorType(self._type)  # a clone has the type object of its original
        self._halves[raised] = result
        self._raised.add(raised)

    def _half(self, value: ir.Value) -> ir.Value:
        """`value` in half precision: what it was cast up from, or moved after the cast, or cast."""
        if value not in self._halves:
            node = value.producer()
            if node is not None and node.graph is self._graph and node.op_type in self._exact and not node.domain:
                self._halves[value] = self._moved(node, value)
            else:
                self._halves[value] = self._append(
                    "Cast", [value], {"to": self._type}, self._type, value, self._precision
                )
        return self._halves[value]

    def _moved(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The result of `node` on what it reads in half precision."""
        count = len(node.inputs) if node.op_type == "Concat" else 1  # behind the first are shapes and axes
        sources = [v for v in node.inputs[:count] if v is not None]
        halves = [self._half(v) for v in sources]
        if all(v in self._raised for v in sources):
            # Then the float32 result is the half one cast up: the node need not run twice.
            for i, half in enumerate(halves):
                node.replace_input_with(i, half)
            self._raise(value)
            return value
        inputs = [*halves, *node.inputs[count:]]
        return self._append(node.op_type, inputs, dict(node.attributes), self._type, value, self._precision)

    def _is_bias(self, node: ir.Node) -> bool:
        """Whether `node` adds a vector of parameters to a product: runtimes fuse the two where both are half."""
        if node.op_type != "Add" or node.domain or not any(v in self._raised for v in node.inputs):
            return False
        return any(
            v is not None
            and v.producer() is None
            and v.name in self._biases
            and v.shape is not None
            and v.shape.rank() == 1
            for v in node.inputs
        )

    def _lower_bias(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            assert value is not None
            node.replace_input_with(i, self._half(value))
        self._raise(node.outputs[0])

    def _append(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, ir.Attr | ir.DataType],
        dtype: ir.DataType,
        like: ir.Value,
        suffix: str,
    ) -> ir.Value:
        """The output of a new node, of the shape of `like` and named after it."""
        output = ir.val(self._name(like, suffix), dtype, like.shape)
        node = ir.Node("", op_type, inputs, [], outputs=[output], name=f"{output.name}/{op_type}")
        for name, value in attributes.items():
            node.attributes.add(value if isinstance(value, ir.Attr) else ir.AttrInt64(name, int(value)))
        self._graph.append(node)
        return output

    def _name(self, value: ir.Value, suffix: str) -> str:
        # A body may cast a value of the graph around it, which may cast it too.
        return f"{self._graph.name}/{value.name}.{suffix}"
