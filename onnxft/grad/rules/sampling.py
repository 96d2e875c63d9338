"""Reading pictures at fractional positions: what GridSample and RoiAlign share.

Along one axis a sample at the coordinate c reads a few taps, each with a weight that depends on c. Over two axes it
reads every pair of taps, with the product of their weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxft.graph.builder import Op, constant, expand_like, zeros_like

CUBIC = -0.75
"""The coefficient a of cubic convolution, which GridSample does not leave open."""


@dataclass(frozen=True)
class Tap:
    """What the samples read at one tap; all values have the shape of the coordinates."""

    position: ir.Value
    """An integer, as a float until `within` makes it an index."""
    weight: ir.Value
    slope: ir.Value
    """d weight / d c"""


def nearest_taps(op: Op, c: ir.Value) -> list[Tap]:
    """The tap that c, rounded already, is."""
    return [Tap(c, ones_like(op, c), zeros_like(op, c))]


def linear_taps(op: Op, c: ir.Value) -> list[Tap]:
    """With t = c - floor(c) the weights are 1 - t and t."""
    low = op.Floor(c)
    t, one = op.Sub(c, low), ones_like(op, c)
    return [Tap(low, op.Sub(1.0, t), op.Neg(one)), Tap(op.Add(low, 1.0), t, one)]


def cubic_taps(op: Op, c: ir.Value) -> list[Tap]:
    """The weight is ((a + 2) d - (a + 3)) d² + 1 at a distance d up to 1, and a (((d - 5) d + 8) d - 4) beyond."""
    a, low = CUBIC, op.Floor(c)
    t = op.Sub(c, low)
    taps = []
    for offset in (-1.0, 0.0, 1.0, 2.0):
        side = 1.0 if offset <= 0 else -1.0  # d grows with c for the taps before it
        d = op.Sub(op.Mul(t, side), side * offset)
        if abs(offset - 0.5) < 1:
            weight = op.Add(op.Mul(op.Sub(op.Mul(d, a + 2), a + 3), op.Mul(d, d)), 1.0)
            slope = op.Mul(op.Sub(op.Mul(d, 3 * (a + 2)), 2 * (a + 3)), d)
        else:
            weight = op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(d, 5.0), d), 8.0), d), 4.0), a)
            slope = op.Mul(op.Add(op.Mul(op.Sub(op.Mul(d, 3.0), 10.0), d), 8.0), a)
        taps.append(Tap(op.Add(low, offset), weight, op.Mul(slope, side)))
    return taps


def ones_like(op: Op, c: ir.Value) -> ir.Value:
    """Ones of the shape of c."""
    return expand_like(op, constant(op, [1.0], c), c)


def within(op: Op, tap: Tap, size: int) -> Tap:
    """The tap with an index (int64) on the axis for a position, and no weight where the position is not on the axis."""
    held = op.Clip(tap.position, 0.0, float(size - 1))
    on_axis = op.Equal(held, tap.position)
    index = op.Cast(held, to=int(ir.DataType.INT64))
    return Tap(index, op.Where(on_axis, tap.weight, 0.0), op.Where(on_axis, tap.slope, 0.0))
