"""What reads a frozen weight, and along which axis its channels lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Reader:
    """An operator that reads a weight, or a transpose of it."""

    node: ir.Node
    index: int
    """Of the operator's input."""
    axis: int
    """Of the weight as it is stored: its rows where it looks them up, its output channels where it multiplies."""

    @property
    def looks_up(self) -> bool:
        """Whether it reads a few rows, as an embedding does."""
        return self.node.op_type == "Gather"


def readers(weight: ir.Value, graph: ir.Graph) -> list[Reader] | None:
    """What reads a weight; None where something else than products and look-ups of rows does, or nothing."""
    if weight.is_graph_output():
        return None
    found = [_reader(node, index, axes) for node, index, axes in _uses(weight, tuple(range(_rank(weight))))]
    known = [reader for reader in found if reader is not None and reader.node.graph is graph]
    return known if known and len(known) == len(found) else None


def channel_axis(found: Sequence[Reader]) -> int:
    """The axis that has a scale for each of its channels: the rows where some are looked up."""
    return next((r.axis for r in found if r.looks_up), min(r.axis for r in found))


def _uses(value: ir.Value, axes: tuple[int, ...]) -> Iterator[tuple[ir.Node, int, tuple[int, ...]]]:
    """(node, index of its input, which axis of the weight each axis is that it reads), through Transposes."""
    for node, index in value.uses():
        y = node.outputs[0]
        if node.op_type == "Transpose" and not node.domain and not y.is_graph_output():
            perm = node.attributes.get_ints("perm", list(reversed(range(len(axes)))))
            yield from _uses(y, tuple(axes[i] for i in perm))
        else:
            yield node, index, axes


def _reader(node: ir.Node, index: int, axes: tuple[int, ...]) -> Reader | None:
    """The reader, of a weight whose axes it sees in the order `axes`; None where it is of another kind."""
    if node.domain:
        return None
    rank, seen = len(axes), None
    match node.op_type:
        case "Gather" if index == 0 and axes == tuple(range(rank)) and node.attributes.get_int("axis", 0) == 0:
            seen = 0
        case "MatMul" if rank == 2:
            seen = 1 if index == 1 else 0
        case "Gemm" if index < 2:
            transposed = node.attributes.get_int("transB" if index else "transA", 0)
            seen = index if not transposed else 1 - index
        case "Conv" if index == 1:
            seen = 0
        case "ConvTranspose" if index == 1:
            seen = 1  # (in, out / groups, *kernel)
        case _:
            pass
    return None if seen is None else Reader(node, index, axes[seen])


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)
