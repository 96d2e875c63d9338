"""How much memory ONNX Runtime's arena comes to hold over the runs of graphs.

The arena asks the system for regions, each at least twice the one before, and hands out the smallest free piece that is
large enough. What was touched once stays resident.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxft.runtime.liveness import Event

_ALIGNMENT = 256
_FIRST_REGION = 2**20
_LARGEST_DOUBLING = 2**30
_LARGEST_REST = 128 * 2**20
"""A piece is divided where at least as much as was asked for is left, or this."""


@dataclass
class _Piece:
    """Bytes `start` to `end` of a region."""

    region: int
    start: int
    end: int
    free: bool = True

    @property
    def size(self) -> int:
        return self.end - self.start


class Arena:
    """Memory from which the buffers of sessions come that take turns."""

    def __init__(self) -> None:
        """An empty arena."""
        self._next_region = _FIRST_REGION
        self._regions: list[list[_Piece]] = []
        self._touched: list[list[tuple[int, int]]] = []
        self._given: dict[str, _Piece] = {}

    @property
    def resident(self) -> int:
        """Bytes that were handed out at least once."""
        total = 0
        for spans in self._touched:
            end = 0
            for start, stop in sorted(spans):
                total += max(stop - max(start, end), 0)
                end = max(end, stop)
        return total

    def run(self, events: Iterable[Event]) -> None:
        """A run, buffer by buffer."""
        given: dict[str, _Piece] = {}
        for event in events:
            if event.taken:
                given[event.buffer] = self._take(event.size)
            else:
                self._give_back(given.pop(event.buffer))
        for piece in given.values():
            self._give_back(piece)

    def _take(self, size: int) -> _Piece:
        needed = max(-(-size // _ALIGNMENT), 1) * _ALIGNMENT
        fitting = [p for region in self._regions for p in region if p.free and p.size >= needed]
        piece = min(fitting, key=lambda p: p.size) if fitting else self._extend(needed)
        if piece.size >= 2 * needed or piece.size - needed >= _LARGEST_REST:
            rest = _Piece(piece.region, piece.start + needed, piece.end)
            pieces = self._regions[piece.region]
            pieces.insert(pieces.index(piece) + 1, rest)
            piece.end = rest.start
        piece.free = False
        self._touched[piece.region].append((piece.start, piece.start + size))
        return piece

    def _extend(self, needed: int) -> _Piece:
        enough = self._next_region >= needed
        while self._next_region < needed:
            self._next_region *= 2
        piece = _Piece(len(self._regions), 0, self._next_region)
        if enough and self._next_region * 2 < _LARGEST_DOUBLING:
            self._next_region *= 2
        self._regions.append([piece])
        self._touched.append([])
        return piece

    def _give_back(self, piece: _Piece) -> None:
        piece.free = True
        joined: list[_Piece] = []
        for part in self._regions[piece.region]:
            if joined and joined[-1].free and part.free:
                joined[-1].end = part.end
            else:
                joined.append(part)
        self._regions[piece.region] = joined
