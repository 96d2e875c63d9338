"""Recurrent layers. The forward operator stays; gates are computed again, for all steps at once.

What a step hands back is linear in what it gets, so the factors are formed for all steps too and the walk
back through time is a few products. In the letters of ONNX: W the weights of x, R those of the hidden
state, h' and c' the states before a step. Gradients at padding (sequence_lens) are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.recurrent_layer import (
    Direction,
    Found,
    arriving,
    differentiate,
    handed_on,
    sigmoid_slope,
    times_weight,
    weight_gradient,
)
from onnxft.grad.rules.recurrent_lstm import lstm_cell
from onnxft.grad.rules.recurrent_walk import Slices, Stepped, walk
from onnxft.graph.builder import Op, cast_like, slice_axis, split
from onnxft.graph.shapes import static_dims


@vjp("RNN")
def rnn(op: Op, node: ir.Node, *dys: ir.Value | None) -> Gradients:
    """h = f(z),  z = x W^T + h' R^T + bias      dz = dh * f'(z),  dh' = dz R;  f' is known from h

    f: Tanh, Relu (0 at 0) or Sigmoid.
    """

    def cell(op: Op, d: Direction) -> Found:
        h = d.h
        slope = {
            "Tanh": lambda: op.Sub(1.0, op.Mul(h, h)),
            "Relu": lambda: cast_like(op, op.Greater(h, 0.0), h),
            "Sigmoid": lambda: op.Mul(h, op.Sub(1.0, h)),
        }[d.activations[0]]()

        def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
            dh = arriving(op, states[0], at)
            dz = op.Mul(dh, at["slope"])
            return [handed_on(op, dz, dh, at)], [dz]

        sequences = {"slope": d.pad(op, slope, 0.0)} | d.incoming() | d.kept(op)
        (dh0,), (dz,) = walk(op, step, [d.dh], sequences, {"r": d.r}, backwards=not d.backwards)
        return Found(dz, weight_gradient(op, dz, d.before(op, h, d.h0)), d.bias_gradient(op, dz, dz), dh0)

    return differentiate(op, node, dys, cell, [("Tanh",), ("Relu",), ("Sigmoid",)])


@vjp("LSTM")
def lstm(op: Op, node: ir.Node, *dys: ir.Value | None) -> Gradients:
    """h = o tanh(c),  c = f c' + i g;  i, f, o sigmoids and g tanh of x W^T + h' R^T + bias (+ p c', for o: p c)

    dc += dh o(1-tanh²c) + do po,  do = dh tanh(c) o(1-o),  di = dc g i(1-i),  df = dc c' f(1-f),  dg = dc i(1-g²),
    dh' = [di, do, df, dg] R,  dc' = dc f + di pi + df pf.  With input_forget f = 1 - i: di = dc (g-c') i(1-i), df = 0.
    """
    cell = partial(lstm_cell, coupled=node.attributes.get_int("input_forget", 0) != 0)
    return differentiate(op, node, dys, cell, [("Sigmoid", "Tanh", "Tanh")])


@vjp("GRU")
def gru(op: Op, node: ir.Node, *dys: ir.Value | None) -> Gradients:
    """h = (1 - z) n + z h',  z and r sigmoids of x W^T + h' R^T + bias

    With linear_before_reset n = tanh(x Wn^T + bwn + r q),  q = h' Rn^T + brn;
    without it n = tanh(x Wn^T + (r h') Rn^T + bwn + brn).
    """
    after = node.attributes.get_int("linear_before_reset", 0) != 0
    return differentiate(op, node, dys, _gru_reset_after if after else _gru_reset_before, [("Sigmoid", "Tanh")])


def _gru_reset_after(op: Op, d: Direction) -> Found:
    """dz = dh (h' - n) z(1-z),  dn = dh (1-z)(1-n²),  dr = dn q r(1-r),  dq = dn r,  dh' = dh z + [dz, dr, dq] R"""
    before = d.before(op, d.h, d.h0)
    x, q = times_weight(op, d.x, d.w), times_weight(op, before, d.r)
    if d.bias is not None:
        of_x, of_h = split(op, d.bias, 2, 0)
        x, q = op.Add(x, of_x), op.Add(q, of_h)
    (xz, xr, xn), (qz, qr, qn) = split(op, x, 3, -1), split(op, q, 3, -1)
    z, r = op.Sigmoid(op.Add(xz, qz)), op.Sigmoid(op.Add(xr, qr))
    n = op.Tanh(op.Add(xn, op.Mul(r, qn)))
    az = op.Mul(op.Sub(before, n), sigmoid_slope(op, z))
    an = op.Mul(op.Sub(1.0, z), op.Sub(1.0, op.Mul(n, n)))
    ar = op.Mul(op.Mul(an, qn), sigmoid_slope(op, r))
    to_x = d.pad(op, op.Concat(az, ar, an, axis=-1), 0.0)
    to_h = d.pad(op, op.Concat(az, ar, op.Mul(an, r), axis=-1), 0.0)

    def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
        dh = arriving(op, states[0], at)
        dq = op.Mul(op.Concat(dh, dh, dh, axis=-1), at["to_h"])
        return [op.Add(op.Mul(dh, at["z"]), op.MatMul(dq, at["r"]))], [dh]

    sequences = {"to_h": to_h, "z": d.pad(op, z, 1.0)} | d.incoming()
    (dh0,), (dh,) = walk(op, step, [d.dh], sequences, {"r": d.r}, backwards=not d.backwards)
    dh = op.Concat(dh, dh, dh, axis=-1)
    dz, dq = op.Mul(dh, to_x), op.Mul(dh, to_h)
    return Found(dz, weight_gradient(op, dq, before), d.bias_gradient(op, dz, dq), dh0)


def _gru_reset_before(op: Op, d: Direction) -> Found:
    """dz = dh (h' - n) z(1-z),  dn = dh (1-z)(1-n²),  u = dn Rn,  dr = u h' r(1-r),  dh' = dh z + u r + [dz, dr] Rzr"""
    (hidden,) = static_dims(d.r, 1)
    before = d.before(op, d.h, d.h0)
    rzr, rn = slice_axis(op, d.r, 0, 0, 2 * hidden), slice_axis(op, d.r, 0, 2 * hidden, 3 * hidden)
    x = times_weight(op, d.x, d.w)
    if d.bias is not None:
        x = op.Add(x, op.Add(*split(op, d.bias, 2, 0)))
    xz, xr, xn = split(op, x, 3, -1)
    qz, qr = split(op, times_weight(op, before, rzr), 2, -1)
    z, r = op.Sigmoid(op.Add(xz, qz)), op.Sigmoid(op.Add(xr, qr))
    reset = op.Mul(r, before)
    n = op.Tanh(op.Add(xn, times_weight(op, reset, rn)))
    az = op.Mul(op.Sub(before, n), sigmoid_slope(op, z))
    an = op.Mul(op.Sub(1.0, z), op.Sub(1.0, op.Mul(n, n)))
    to_zr = op.Concat(az, op.Mul(before, sigmoid_slope(op, r)), axis=-1)

    def step(op: Op, states: Sequence[ir.Value], at: Slices) -> Stepped:
        dh = arriving(op, states[0], at)
        dn = op.Mul(dh, at["an"])
        u = op.MatMul(dn, at["rn"])
        dzr = op.Mul(op.Concat(dh, u, axis=-1), at["to_zr"])
        straight = op.Add(op.Mul(dh, at["z"]), op.Mul(u, at["reset"]))
        return [op.Add(straight, op.MatMul(dzr, at["rzr"]))], [dzr, dn]

    sequences = {"an": d.pad(op, an, 0.0), "to_zr": d.pad(op, to_zr, 0.0), "z": d.pad(op, z, 1.0), "reset": r}
    weights = {"rn": rn, "rzr": rzr}
    (dh0,), (dzr, dn) = walk(op, step, [d.dh], sequences | d.incoming(), weights, backwards=not d.backwards)
    dz = op.Concat(dzr, dn, axis=-1)
    dr = op.Concat(weight_gradient(op, dzr, before), weight_gradient(op, dn, reset), axis=0)
    return Found(dz, dr, d.bias_gradient(op, dz, dz), dh0)
