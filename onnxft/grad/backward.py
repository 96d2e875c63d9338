"""The engine: walk back from one scalar to the parameters, and let each node's rule speak once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import onnx_ir as ir

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.errors import GradientError
from onnxft.grad.registry import rule_for
from onnxft.graph.builder import Op, constant, is_float, sum_to


def backward(
    op: Op, y: ir.Value, xs: Sequence[ir.Value], between: Iterable[ir.Value] = (), seed: ir.Value | None = None
) -> dict[ir.Value, ir.Value]:
    """Append the nodes that compute dy/dx for every x in `xs`, and return {x: dx}.

    `y` is a scalar, and so is the `seed` that all gradients are multiplied with (None: 1); every `dx` has the shape of
    its `x`. Of the values `between` the xs and y, those that gradients pass are in the result too. GradientError if an
    operator on the path has no rule, or if some x does not reach y (it would silently stay untrained).
    """
    path = nodes_between(xs, y)
    found: dict[ir.Value, list[ir.Value]] = {y: [constant(op, 1.0, y) if seed is None else seed]}
    for node in reversed(path):
        dys = [_total(op, found.get(output)) for output in node.outputs]
        if all(dy is None for dy in dys):
            continue
        rule = rule_for(node, partial(behind, node, xs))
        gradients = rule(op, node, *dys)
        if len(gradients) != len(node.inputs):
            raise GradientError(
                f"the rule of '{node.op_type}' returned {len(gradients)} gradients for {len(node.inputs)} inputs"
            )
        for x, dx in zip(node.inputs, gradients, strict=True):
            if x is not None and dx is not None and is_float(x):
                found.setdefault(x, []).append(sum_to(op, dx, x))
    result: dict[ir.Value, ir.Value] = {}
    for x in xs:
        dx = _total(op, found.get(x))
        if dx is None:
            raise GradientError(
                f"'{x.name}' does not reach the loss along differentiable values, so it would never be trained. "
                "Freeze it, or choose another output for the loss."
            )
        result[x] = dx
    # The gradients of what a node on the path computes were added up when its turn came.
    passed = {v for node in path for v in node.outputs}
    return result | {v: found[v][0] for v in between if v in passed and v in found}


def nodes_between(xs: Iterable[ir.Value], y: ir.Value) -> list[ir.Node]:
    """The nodes that lie both after some x and before y along floating-point values, in graph order."""
    after: set[ir.Node] = set()
    frontier = list(xs)
    while frontier:
        for node in frontier.pop().consumers():
            if node not in after:
                after.add(node)
                frontier.extend(v for v in node.outputs if is_float(v))
    both = after & nodes_before(y)
    if not both:
        return []
    graph = next(iter(both)).graph
    assert graph is not None
    return [node for node in graph if node in both]


def nodes_before(y: ir.Value) -> set[ir.Node]:
    """The nodes that y is computed by."""
    before: set[ir.Node] = set()
    producers = [y.producer()]
    while producers:
        producer = producers.pop()
        if producer is not None and producer not in before:
            before.add(producer)
            producers.extend(v.producer() for v in producer.inputs if v is not None)
    return before


def _total(op: Op, parts: list[ir.Value] | None) -> ir.Value | None:
    """Sum of the gradients of several uses; kept, so that it is formed once."""
    if not parts:
        return None
    while len(parts) > 1:
        second, first = parts.pop(), parts.pop()
        total = op.Add(first, second)
        total.shape = first.shape
        parts.append(total)
    return parts[0]


def behind(node: ir.Node, xs: Sequence[ir.Value]) -> list[str]:
    """Names of the xs from which `node` is reached, for an error message."""
    seen: set[ir.Node] = set()
    stack: list[ir.Node] = [node]
    names: dict[str, None] = {}
    wanted = set(xs)
    while stack:
        for value in stack.pop().inputs:
            if value in wanted and value is not None and value.name:
                names[value.name] = None
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in seen:
                seen.add(producer)
                stack.append(producer)
    return list(names)
