"""A node and its gradient as two functions of the model.

onnxruntime-training differentiates a call of a function that it has no builder for by a definition that is registered
for the function's name. `use_native_rule` turns a node into such a call and writes its gradient, by the native
rule, as a second function; the worker registers the one for the other, and puts the bodies of both in the place
of their calls once the graphs are there (`register_gradients` and `inline_functions` in `worker.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.grad.backward import behind
from onnxft.grad.registry import rule_for
from onnxft.graph.builder import Op, builder, sum_to, zeros_like
from onnxft.graph.normalize import IR_VERSION, OPSET

FORWARD, GRADIENT = "onnxft.forward", "onnxft.gradient"
"""Domains of the functions; those of a node have the same name in both."""


def use_native_rule(
    model: ir.Model, node: ir.Node, wanted: Collection[int], given: Collection[int], parameters: Sequence[ir.Value]
) -> set[int]:
    """Turn `node` into a call of a function with a gradient of its own; the inputs that the rule has none for.

    Inputs and outputs of the gradient have the names by which a definition calls them: `I0` is input 0 of the call,
    `O0` its output, `GO0` and `GI0` their gradients.

    Args:
        model: gets the functions.
        node: changed in place.
        wanted: indices of the inputs whose gradient is asked for.
        given: indices of the outputs whose gradient comes in.
        parameters: what is trained.

    Raises:
        GradientError: the operator, or this use of it, has no rule.
    """
    # The package reads gradient k of a definition as that of input k, whatever its name says: those come first.
    present = [*wanted, *(i for i, x in enumerate(node.inputs) if x is not None and i not in wanted)]
    place = {i: position for position, i in enumerate(present)}
    name = f"{node.op_type}_{len(model.functions) // 2}"
    gradient, zeros = _gradient(node, place, wanted, given, parameters)
    for domain, graph in ((FORWARD, _forward(node, place)), (GRADIENT, gradient)):
        function = ir.Function(domain, name, graph=graph, attributes=[])
        model.functions[function.identifier()] = function
        model.opset_imports[domain] = model.graph.opset_imports[domain] = 1
    inputs = [node.inputs[i] for i in present]
    node.resize_inputs(len(inputs))
    for position, x in enumerate(inputs):
        node.replace_input_with(position, x)
    node.domain, node.op_type, node.version = FORWARD, name, None
    node.attributes.clear()
    return zeros


def _forward(node: ir.Node, place: Mapping[int, int]) -> ir.Graph:
    """The node alone."""
    formal = {i: ir.Value(name=f"I{p}", type=x.type) for i, p in place.items() if (x := node.inputs[i]) is not None}
    inner = _copy(node, [formal.get(i) for i in range(len(node.inputs))])
    return ir.Graph(list(formal.values()), inner.outputs, nodes=[inner], opset_imports={"": OPSET}, name=node.op_type)


def _gradient(
    node: ir.Node,
    place: Mapping[int, int],
    wanted: Collection[int],
    given: Collection[int],
    parameters: Sequence[ir.Value],
) -> tuple[ir.Graph, set[int]]:
    """The native gradient of a copy of the node, and the inputs that the rule has none for."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=f"{node.op_type}.gradient"))
    graph = op.builder.graph
    xs = [None if x is None else _formal(op, x, f"I{place[i]}", x in parameters) for i, x in enumerate(node.inputs)]
    inner = _copy(node, xs)
    inner.metadata_props.update(node.metadata_props)
    graph.append(inner)
    dys = [_typed(op, f"GO{j}", y) if j in given else None for j, y in enumerate(node.outputs)]
    found = rule_for(inner, partial(behind, node, parameters))(op, inner, *dys)
    zeros = set()
    for i in wanted:
        x, dx = xs[i], found[i]
        assert x is not None
        if dx is None:
            zeros.add(i)
        # An Identity, because one value may be the gradient of two inputs, or an incoming one.
        result = op.Identity(zeros_like(op, x) if dx is None else sum_to(op, dx, x))
        result.name = f"GI{place[i]}"
        graph.outputs.append(result)
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=IR_VERSION))
    _hand_in_outputs(op, inner)
    _hand_in_constants(op)
    return graph, zeros


def _copy(node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """The node with other inputs, and outputs of its own with the same names."""
    attributes = list(node.attributes.values())
    inner = ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    for j, (mine, own) in enumerate(zip(inner.outputs, node.outputs, strict=True)):
        mine.name, mine.type, mine.shape = own.name or f"unread_{j}", own.type, own.shape
    return inner


def _formal(op: Op, x: ir.Value, name: str, trained: bool) -> ir.Value:
    """What stands for an input: a rule may look into a constant, but not into what is trained."""
    if x.const_value is not None and not trained:
        return op.initializer(x.const_value, name=name)
    return _typed(op, name, x)


def _typed(op: Op, name: str, like: ir.Value) -> ir.Value:
    value = ir.Value(name=name, type=like.type, shape=like.shape)
    op.builder.graph.inputs.append(value)
    return value


def _hand_in_outputs(op: Op, inner: ir.Node) -> None:
    """Results of the forward node become inputs: they are not computed again."""
    for j, y in enumerate(inner.outputs):
        if y.uses():
            y.replace_all_uses_with(_typed(op, f"O{j}", y))
    if inner.graph is not None:
        op.builder.graph.remove(inner, safe=True)


def _hand_in_constants(op: Op) -> None:
    """Constants of the node become inputs, so that none is there twice; those of the rule are nodes."""
    graph = op.builder.graph
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        if not value.uses():
            continue
        if name.startswith("I") and name[1:].isdigit():
            value.replace_all_uses_with(_typed(op, name, value))
            continue
        assert value.const_value is not None
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], name=name)
        made = constant.outputs[0]
        made.name, made.type, made.shape = name, value.type, value.shape
        value.replace_all_uses_with(made)
        graph.insert_before(first, constant)
