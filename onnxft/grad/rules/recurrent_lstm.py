"""One direction of an LSTM. Its cell states are no output, so they are walked again before the gates are known."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.grad.rules.recurrent_layer import (
    Direction,
    Found,
    arriving,
    handed_on,
    sigmoid_slope,
    sum_steps,
    times_weight,
    weight_gradient,
)
from onnxft.grad.rules.recurrent_walk import Slices, Stepped, walk
from onnxft.graph.builder import Op, split, zeros_like


def lstm_cell(op: Op, d: Direction, *, coupled: bool) -> Found:
    """The formulas are those of the rule; `coupled`: input_forget."""
    before = d.before(op, d.h, d.h0)
    z = op.Add(times_weight(op, d.x, d.w), times_weight(op, before, d.r))
    if d.bias is not None:
        z = op.Add(z, op.Add(*split(op, d.bias, 2, 0)))
    zi, zo, zf, zg = split(op, z, 4, -1)
    g = op.Tanh(zg)
    p = {} if d.p is None else dict(zip(("pi", "po", "pf"), split(op, d.p, 3, 0), strict=True))
    if d.p is None:
        i, f = _entry(op, zi, zf, d.c0, p, coupled=coupled)
        c = _cells(op, d, f, op.Mul(i, g))
        c_before = d.before(op, c, d.c0)
    else:
        c = _peephole_cells(op, d, {"zi": zi, "zf": zf, "g": g}, p, coupled=coupled)
        c_before = d.before(op, c, d.c0)
        i, f = _entry(op, zi, zf, c_before, p, coupled=coupled)
    o = _gate(op, zo, c, p.get("po"))
    tanh = op.Tanh(c)

    do = op.Mul(tanh, sigmoid_slope(op, o))
    dc = op.Mul(o, op.Sub(1.0, op.Mul(tanh, tanh)))
    di = op.Mul(op.Sub(g, c_before) if coupled else g, sigmoid_slope(op, i))
    df = zeros_like(op, f) if coupled else op.Mul(c_before, sigmoid_slope(op, f))
    dg = op.Mul(i, op.Sub(1.0, op.Mul(g, g)))
    to_before = f
    if d.p is not None:
        dc = op.Add(dc, op.Mul(do, p["po"]))
        to_before = op.Sum(f, op.Mul(di, p["pi"]), op.Mul(df, p["pf"]))
    factors = {
        "dc": d.pad(op, dc, 0.0),
        "dz": d.pad(op, op.Concat(di, do, df, dg, axis=-1), 0.0),
        "to_before": d.pad(op, to_before, 1.0),
    }

    def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
        dh = arriving(op, states[0], at)
        dc = op.Add(states[1], op.Mul(dh, at["dc"]))
        dz = op.Mul(op.Concat(dc, dh, dc, dc, axis=-1), at["dz"])
        return [handed_on(op, dz, dh, at), op.Mul(dc, at["to_before"])], [dz]

    sequences = factors | d.incoming() | d.kept(op)
    (dh0, dc0), (dz,) = walk(op, step, [d.dh, d.dc], sequences, {"r": d.r}, backwards=not d.backwards)
    dp = None
    if d.p is not None:
        di, do, df, _ = split(op, dz, 4, -1)
        reads = [op.Mul(di, c_before), op.Mul(do, c), op.Mul(df, c_before)]
        dp = op.Concat(*[sum_steps(op, read) for read in reads], axis=0)
    return Found(dz, weight_gradient(op, dz, before), d.bias_gradient(op, dz, dz), dh0, dc0, dp)


def _entry(op: Op, zi: ir.Value, zf: ir.Value, c: ir.Value, p: Slices, *, coupled: bool) -> tuple[ir.Value, ir.Value]:
    """i and f; `c` is the cell state before the step"""
    i = _gate(op, zi, c, p.get("pi"))
    return i, op.Sub(1.0, i) if coupled else _gate(op, zf, c, p.get("pf"))


def _gate(op: Op, z: ir.Value, c: ir.Value, p: ir.Value | None) -> ir.Value:
    return op.Sigmoid(z if p is None else op.Add(z, op.Mul(c, p)))


def _cells(op: Op, d: Direction, f: ir.Value, ig: ir.Value) -> ir.Value:
    """(T, B, H): c = f c' + ig"""

    def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
        c = op.Add(op.Mul(at["f"], states[0]), at["ig"])
        return [c], [c]

    sequences = {"f": d.pad(op, f, 1.0), "ig": d.pad(op, ig, 0.0)}
    _, (c,) = walk(op, step, [d.c0], sequences, {}, backwards=d.backwards)
    return c


def _peephole_cells(op: Op, d: Direction, sequences: Slices, p: Slices, *, coupled: bool) -> ir.Value:
    """(T, B, H): c = f c' + i g, where i and f look at c'"""

    def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
        (before,) = states
        i, f = _entry(op, at["zi"], at["zf"], before, at, coupled=coupled)
        c = op.Add(op.Mul(f, before), op.Mul(i, at["g"]))
        if "valid" in at:
            c = op.Where(at["valid"], c, before)
        return [c], [c]

    if d.valid is not None:
        sequences = {**sequences, "valid": d.valid}
    read = {name: p[name] for name in ("pi", "pf") if name == "pi" or not coupled}
    _, (c,) = walk(op, step, [d.c0], sequences, read, backwards=d.backwards)
    return c
