"""Walking a graph: what a value is computed by, and what is computed from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import onnx_ir as ir

SHAPES = ("Shape", "Size")
"""Operators that read the shape of a value and none of its data."""


def nodes_of(outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """All nodes that the outputs are computed by, in graph order."""
    found: set[ir.Node] = set()
    waiting = [v.producer() for v in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(x.producer() for x in reads(node))
    graph = next(iter(found)).graph if found else None
    return [node for node in graph or () if node in found]


def with_bodies(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes, and those in the graphs that stand in them."""
    found = set(nodes)
    for node in list(found):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found |= with_bodies(attribute.as_graph())
    return found


def after(
    nodes: Iterable[ir.Node], starts: Iterable[ir.Value], through: Callable[[ir.Node], bool] = lambda node: True
) -> set[ir.Value]:
    """The values themselves, and those that are computed from them by nodes that let them `through`."""
    found = set(starts)
    for node in nodes:
        if through(node) and any(x in found for x in reads(node)):
            found.update(node.outputs)
    return found


def values(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Graph inputs that are read, and all outputs, each once, in graph order."""
    return list(dict.fromkeys([*graph_inputs(nodes), *(v for node in nodes for v in node.outputs)]))


def graph_inputs(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """Inputs of the graph that the nodes read."""
    return list(dict.fromkeys(x for node in nodes for x in reads(node) if x.is_graph_input()))


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its body too."""
    yield from (x for x in node.inputs if x is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from (x for x in reads(inner) if x.graph is not attribute.as_graph())
