"""The frontier of a model: the values that its frozen part hands to the part that is trained.

Of all sets of values that separate the two, the one with the fewest bytes a row: a minimum cut. Only what moves or
masks values may stand behind it, so that nothing expensive of the frozen part is computed with the trained one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.shapes import dims
from onnxft.graph.walk import SHAPES, after, graph_inputs, nodes_of, reads, values
from onnxft.manifest import BATCH, dimension_size
from onnxft.step.multiply_adds import UNCOUNTED, is_product
from onnxft.step.work import ELEMENTWISE, VIEWS

_CHEAP = VIEWS | ELEMENTWISE
_IN, _OUT = 0, 1
_Point = tuple[ir.Value | None, int]
"""A value as it arrives and as it is handed on; None is the source before all, and the sink behind all."""
_SOURCE: _Point = (None, _IN)
_SINK: _Point = (None, _OUT)


def find_frontier(
    outputs: Sequence[ir.Value], trained: Collection[ir.Value], sizes: Mapping[str, int]
) -> tuple[ir.Value, ...]:
    """The values that the trained part reads, in the order of the graph; () where no product is in the frozen part.

    Args:
        outputs: what the graph computes.
        trained: what moves: parameters, running statistics, random numbers.
        sizes: {symbolic dimension: size}, by which values are weighed.

    Raises:
        ModelError: a value between the two parts has no rows of its own, so that it cannot be kept row by row.
    """
    nodes = nodes_of(outputs)
    moving = after(nodes, trained)
    data = after(nodes, graph_inputs(nodes), through=lambda node: node.op_type not in SHAPES)
    frozen = [v for v in values(nodes) if v in data and v not in moving]
    if not any(_is_product(v.producer()) for v in frozen):
        return ()
    read = {x for node in nodes if any(y in moving for y in node.outputs) for x in reads(node)} | set(outputs)
    chosen = _minimum_cut(frozen, {v for v in frozen if v in read}, sizes)
    return tuple(v for v in frozen if v in chosen)


def _minimum_cut(frozen: Sequence[ir.Value], read: Collection[ir.Value], sizes: Mapping[str, int]) -> set[ir.Value]:
    """Edmonds and Karp: flow along shortest paths until none is left; of all minimum cuts, the one nearest to the end.

    Each value is an edge with the capacity of its bytes; what computes one value from another is unlimited.
    """
    known = set(frozen)
    residual: dict[_Point, dict[_Point, float]] = {}

    def add(a: _Point, b: _Point, capacity: float) -> None:
        residual.setdefault(a, {})[b] = capacity
        residual.setdefault(b, {}).setdefault(a, 0.0)

    for v in frozen:
        add((v, _IN), (v, _OUT), _row_bytes(v, sizes))
        node = v.producer()
        before = [x for x in reads(node) if x in known] if node is not None else []
        if not before or _is_heavy(v):
            add(_SOURCE, (v, _IN), math.inf)
        else:
            for x in before:
                add((x, _OUT), (v, _IN), math.inf)
        if v in read:
            add((v, _OUT), _SINK, math.inf)
    while path := _path(residual):
        flow = min(residual[a][b] for a, b in path)
        if flow == math.inf:
            names = [v.name for (v, _), _ in path if v is not None]
            raise ModelError(
                f"the frozen part of the model hands on '{names[-1]}', whose first dimension is not the batch, so it "
                "cannot be kept row by row."
            )
        for a, b in path:
            residual[a][b] -= flow
            residual[b][a] += flow
    reaches = _reaching(residual)
    return {v for v in frozen if (v, _IN) not in reaches and (v, _OUT) in reaches}


def _path(residual: Mapping[_Point, Mapping[_Point, float]]) -> list[tuple[_Point, _Point]]:
    """A shortest path from source to sink along which something still flows."""
    came: dict[_Point, _Point] = {}
    waiting = deque([_SOURCE])
    while waiting and _SINK not in came:
        a = waiting.popleft()
        for b, capacity in residual[a].items():
            if capacity > 0 and b not in came and b != _SOURCE:
                came[b] = a
                waiting.append(b)
    path, b = [], _SINK
    while b in came:
        path.append((came[b], b))
        b = came[b]
    return path[::-1]


def _reaching(residual: Mapping[_Point, Mapping[_Point, float]]) -> set[_Point]:
    """The points from which the sink can still be reached."""
    found, waiting = {_SINK}, [_SINK]
    while waiting:
        b = waiting.pop()
        for a in residual[b]:
            if a not in found and residual[a].get(b, 0) > 0:
                found.add(a)
                waiting.append(a)
    return found


def _row_bytes(value: ir.Value, sizes: Mapping[str, int]) -> float:
    """Bytes of one row; infinite for what has no rows or no known size."""
    shape = dims(value)
    known = [None if d is None else dimension_size(d, sizes) for d in shape]
    if not shape or shape[0] != BATCH or None in known or value.dtype is None:
        return math.inf
    return math.prod(d for d in known[1:] if d is not None) * value.dtype.itemsize


def _is_product(node: ir.Node | None) -> bool:
    return node is not None and (is_product(node) or node.op_type in UNCOUNTED)


def _is_heavy(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (node.op_type not in _CHEAP or bool(node.domain))
