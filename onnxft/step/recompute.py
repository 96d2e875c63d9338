"""Recomputation: what a block's way back reads of its way there is computed again, so that it is not kept until then.

A segment gives what blocks behind it read (see `segments.py`); only that is kept. A copy of its nodes reads what the
segment reads, but through a node that waits for the gradient which arrives at the segment's end. Without this data edge
a runtime would merge copy and original, which compute the same, or run the copy as early as the original.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, reshape, table
from onnxft.graph.shapes import dims, set_dims
from onnxft.graph.walk import nodes_of, with_bodies
from onnxft.step.segments import Segment

RECOMPUTED = ".recomputed"
"""What the names of recomputed values end with."""


def recompute(
    op: Op,
    segments: Sequence[Segment],
    gradients: Mapping[ir.Value, ir.Value],
    outputs: Collection[ir.Value],
    results: Collection[ir.Value],
) -> int:
    """Let the backward pass read recomputed activations, in place; return how many nodes are computed again.

    Args:
        op: writes into the differentiated graph.
        segments: of its forward pass.
        gradients: {what a segment gives: its gradient}; a segment without one stays as it is.
        outputs: what the forward pass computes: loss, metrics, running statistics.
        results: what the backward pass computes: the gradients of the parameters.
    """
    forward = with_bodies(nodes_of(outputs))
    backward = with_bodies(nodes_of(results)) - forward
    count = 0
    for segment in segments:
        arriving = [gradients[v] for v in segment.given if v in gradients]
        if arriving:
            # What is given last is read by no node of the segment that gradients pass: its gradient needs none of it.
            count += _recompute(op, segment, arriving[-1], backward)
    op.builder.graph.sort()
    return count


def _recompute(op: Op, segment: Segment, dy: ir.Value, backward: Set[ir.Node]) -> int:
    repeatable = [node for node in segment.nodes if not _has_body(node)]
    kept = {*segment.given, *(v for node in segment.nodes if _has_body(node) for v in node.outputs)}
    needed = [
        v for node in repeatable for v in node.outputs if v not in kept and not backward.isdisjoint(v.consumers())
    ]
    batch = {*segment.taken, *(v for node in segment.nodes for v in node.outputs)}
    again = _computing(needed, repeatable, kept)
    if not again:
        return 0
    index = _index(op, dy)
    copies: dict[ir.Value, ir.Value] = {}
    for node in again:
        read = [x for x in node.inputs if x is not None]
        if not any(x in copies for x in read):
            x = next(x for x in read if x in batch)
            copies[x] = _wait(op, x, index)
        _copy(op, node, copies)
    for v in needed:
        for user, place in list(v.uses()):
            if user in backward:
                user.replace_input_with(place, copies[v])
    return len(again)


def _computing(wanted: Collection[ir.Value], nodes: Sequence[ir.Node], kept: Collection[ir.Value]) -> list[ir.Node]:
    """Those of the nodes that the wanted values are computed by from kept ones, in their order."""
    missing, found = set(wanted), []
    for node in reversed(nodes):
        if not missing.isdisjoint(node.outputs):
            found.append(node)
            missing.update(x for x in node.inputs if x is not None and x not in kept)
    return found[::-1]


def _index(op: Op, dy: ir.Value) -> ir.Value:
    """Whether one value of `dy` is both below and above 0, as an index: 0, which no runtime works out beforehand.

    Comparisons hold for nothing that is not a number. OpenVINO does not take an ArgMax of a single value.
    """
    first = op.Gather(reshape(op, dy, [-1]), table(op, np.array(0)))
    return op.Cast(op.And(op.Less(first, 0.0), op.Greater(first, 0.0)), to=int(ir.DataType.INT64))


def _wait(op: Op, x: ir.Value, index: ir.Value) -> ir.Value:
    """`x` itself, copied after `index` (a 0) is there; its shape stays static."""
    y = op.Gather(op.Unsqueeze(x, [0]), index, axis=0)
    set_dims(y, dims(x))
    return y


def _copy(op: Op, node: ir.Node, copies: dict[ir.Value, ir.Value]) -> None:
    """Append a copy of a node that reads copies where there are some, and note those of what it computes."""
    inputs = [None if x is None else copies.get(x, x) for x in node.inputs]
    copy = ir.Node(
        node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs),
        name=f"{node.name}{RECOMPUTED}",
    )  # fmt: skip
    for v, y in zip(node.outputs, copy.outputs, strict=True):
        y.name, y.type, y.shape = f"{v.name}{RECOMPUTED}", v.type, v.shape
        copies[v] = y
    op.builder.graph.append(copy)


def _has_body(node: ir.Node) -> bool:
    """Whether a graph stands in a node, as in a Scan: it is not copied, and what it computes is kept."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
