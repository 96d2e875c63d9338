"""The segments of a forward pass whose activations are computed again: its blocks, and what lies before the first.

They are runs of nodes in the order of the graph. Between two of them lies a cut, where the fewest bytes are handed on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from onnxft.errors import SelectionError
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims
from onnxft.graph.walk import SHAPES, after, nodes_of, reads
from onnxft.manifest import BATCH, dimension_size
from onnxft.step.methods.blocks import Blocks
from onnxft.step.methods.reading import Reading
from onnxft.step.step_graph import StepGraphBuilder


@dataclass(frozen=True)
class Recomputation:
    """What is computed again."""

    blocks: Blocks
    """Of the model."""
    per_segment: int = 1
    """How many of them, one behind the other, are computed again together."""


@dataclass(frozen=True)
class Segment:
    """Nodes of the forward pass between two cuts."""

    nodes: tuple[ir.Node, ...]
    """Those that depend on the batch by more than its size, in the order of the graph."""
    taken: frozenset[ir.Value]
    """What they read that is computed before them and depends on the batch, inputs of the graph included."""
    given: tuple[ir.Value, ...]
    """What they compute and nodes behind them read, in the order of the graph."""


def find_segments(
    train: StepGraphBuilder, outputs: Iterable[ir.Value], recomputation: Recomputation
) -> tuple[Segment, ...]:
    """Divide what computes `outputs` before every `per_segment`-th block, and leave out the last segment.

    Its activations are needed as soon as they are there.

    Raises:
        SelectionError: no block that is computed here has others behind it.
    """
    blocks, per_segment = recomputation.blocks, recomputation.per_segment
    graph, roles = train.model.graph, {port.name: port.role for port in train.inputs}
    batch = [v for v in graph.inputs if roles.get(str(v.name)) not in ("parameter", "buffer")]
    nodes = nodes_of(outputs)
    data = after(nodes, batch, through=lambda node: node.op_type not in SHAPES)
    fed = [node for node in nodes if not data.isdisjoint(node.outputs)]
    values = {**graph.initializers, **train.values}
    parameters = {t.name: values[t.name] for t in train.forward.tensors if t.name in values}
    reading = Reading(graph, parameters, batch)
    cuts = _cuts(fed, reading, blocks, per_segment, {BATCH: 1, **train.forward.dimensions})
    if not cuts:
        raise nothing_recomputed(train.forward, recomputation)
    parts = [
        [node for node in fed if start <= reading.order[node] < end]
        for start, end in zip([0, *cuts], cuts, strict=False)
    ]
    return tuple(_segment(part, fed[sum(map(len, parts[: i + 1])) :], data) for i, part in enumerate(parts))


def nothing_recomputed(forward: Forward, recomputation: Recomputation) -> SelectionError:
    """The error where no gradient passes a block with others behind it, or all of them are one segment."""
    blocks = ", ".join(recomputation.blocks.blocks) or "none"
    return SelectionError(
        f"there is nothing to recompute in '{forward.name}': gradients pass no block that a block in another segment "
        f"follows. Found are {blocks}; {recomputation.per_segment} make a segment. Leave recompute out, train more "
        "blocks, ask for fewer in a segment, or say what a block is (--block 'encoder.layer.*')."
    )


def _segment(nodes: Sequence[ir.Node], behind: Iterable[ir.Node], data: Collection[ir.Value]) -> Segment:
    own = {v for node in nodes for v in node.outputs}
    taken = frozenset(x for node in nodes for x in reads(node) if x in data and x not in own)
    return Segment(tuple(nodes), taken, tuple(_crossing(nodes, behind)))


def _cuts(
    nodes: Sequence[ir.Node], reading: Reading, blocks: Blocks, per_segment: int, sizes: Mapping[str, int]
) -> list[int]:
    """Places in the order of the graph before which a segment begins.

    Blocks that share a parameter, or are computed side by side, stay together.
    """
    present = [own for names in blocks.blocks.values() if (own := [n for n in names if n in reading.readers])]
    spans = [reading.span(chain(*present[i : i + per_segment])) for i in range(0, len(present), per_segment)]
    places = [reading.order[node] for readers in reading.readers.values() for node in readers]
    cuts = []
    for index, (start, _) in enumerate(spans):
        before = [place for place in places if place < start]
        if before and all(end < start for _, end in spans[:index]):
            cuts.append(_narrowest(nodes, reading, max(before) + 1, start, sizes))
    return cuts


def _narrowest(nodes: Sequence[ir.Node], reading: Reading, first: int, last: int, sizes: Mapping[str, int]) -> int:
    """The place from `first` to `last` where the fewest bytes a row are handed on; of equal ones the first."""

    def handed_on(place: int) -> float:
        count = sum(reading.order[node] < place for node in nodes)
        return sum(_row_bytes(v, sizes) for v in _crossing(nodes[:count], nodes[count:]))

    return min(range(first, last + 1), key=handed_on)


def _crossing(before: Sequence[ir.Node], behind: Iterable[ir.Node]) -> list[ir.Value]:
    """What the nodes of one side compute and those of the other read."""
    read = {x for node in behind for x in reads(node)}
    return [v for node in before for v in node.outputs if v in read]


def _row_bytes(value: ir.Value, sizes: Mapping[str, int]) -> float:
    """Bytes of a value at these sizes; infinite where one is not known."""
    known = [None if d is None else dimension_size(d, sizes) for d in dims(value)]
    if value.dtype is None or None in known:
        return math.inf
    return math.prod(d for d in known if d is not None) * value.dtype.itemsize
