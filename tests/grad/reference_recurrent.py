"""LSTM, GRU and RNN by the formulas of the ONNX standard, step by step in torch: differentiable, in any precision.

The evaluator of onnx has no sequence_lens, no input_forget, and of the activations of RNN only tanh; its Scan
only walks forwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_scan import Scan as ScanOfOnnx

ACTIVATIONS = {"Tanh": torch.tanh, "Relu": torch.relu, "Sigmoid": torch.sigmoid}


def lstm_step(x, h, c, w, r, bias, p, input_forget=0, **_):
    zi, zo, zf, zc = (x @ w.T + h @ r.T + sum(bias.chunk(2))).chunk(4, -1)
    pi, po, pf = p.chunk(3)
    i = torch.sigmoid(zi + pi * c)
    f = 1 - i if input_forget else torch.sigmoid(zf + pf * c)
    c = f * c + i * torch.tanh(zc)
    o = torch.sigmoid(zo + po * c)
    return o * torch.tanh(c), c


def gru_step(x, h, c, w, r, bias, p, linear_before_reset=0, **_):
    (wz, wr, wh), (rz, rr, rh) = w.chunk(3), r.chunk(3)
    wbz, wbr, wbh, rbz, rbr, rbh = bias.chunk(6)
    z = torch.sigmoid(x @ wz.T + h @ rz.T + wbz + rbz)
    reset = torch.sigmoid(x @ wr.T + h @ rr.T + wbr + rbr)
    if linear_before_reset:
        n = torch.tanh(x @ wh.T + reset * (h @ rh.T + rbh) + wbh)
    else:
        n = torch.tanh(x @ wh.T + (reset * h) @ rh.T + rbh + wbh)
    return (1 - z) * n + z * h, c


def rnn_step(x, h, c, w, r, bias, p, activation="Tanh", **_):
    return ACTIVATIONS[activation](x @ w.T + h @ r.T + sum(bias.chunk(2))), c


STEPS = {"LSTM": (lstm_step, 4), "GRU": (gru_step, 3), "RNN": (rnn_step, 1)}


def recurrent(op, x, w, r, bias=None, lens=None, h0=None, c0=None, p=None, direction="forward", **attrs):
    """Y (T, D, B, H), Y_h (D, B, H), Y_c (D, B, H); Y_c is zeros where the operator has none."""
    step, gates = STEPS[op]
    time, batch, _ = x.shape
    count, _, hidden = r.shape
    zeros = x.new_zeros
    bias = zeros(count, 2 * gates * hidden) if bias is None else bias
    h0 = zeros(count, batch, hidden) if h0 is None else h0
    c0 = zeros(count, batch, hidden) if c0 is None else c0
    p = zeros(count, 3 * hidden) if p is None else p
    lens = torch.full((batch,), time) if lens is None else lens
    activations = attrs.pop("activations", None)
    ys, hs, cs = [], [], []
    for d, backwards in enumerate({"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]):
        own = {} if op != "RNN" or activations is None else {"activation": activations[d]}
        h, c, outputs = h0[d], c0[d], [zeros(batch, hidden)] * time
        for t in reversed(range(time)) if backwards else range(time):
            valid = (t < lens)[:, None]
            new_h, new_c = step(x[t], h, c, w[d], r[d], bias[d], p[d], **own, **attrs)
            h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
            outputs[t] = torch.where(valid, h, zeros(()))
        ys.append(torch.stack(outputs))
        filled = (lens > 0)[:, None]  # ONNX Runtime gives 0 for a row without steps; the standard says nothing
        hs.append(torch.where(filled, h, zeros(())))
        cs.append(torch.where(filled, c, zeros(())))
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)


class _Recurrent(OpRun):
    op_domain = ""

    def _run(self, *inputs: Any, **attrs: Any) -> tuple[Any, ...]:
        known = {k: v for k, v in attrs.items() if v is not None and k not in ("hidden_size", "layout")}
        tensors = [None if v is None else torch.tensor(v) for v in inputs]
        found = recurrent(type(self).__name__, *tensors, **known)
        return tuple(y.numpy() for y in found[: len(self.onnx_node.output)])


class LSTM(_Recurrent):
    """That of onnx has no sequence_lens and no input_forget."""


class GRU(_Recurrent):
    """That of onnx has no sequence_lens."""


class RNN(_Recurrent):
    """That of onnx has no sequence_lens and no Relu."""


class Scan(ScanOfOnnx):
    """That of onnx walks forwards only: here what goes in and what comes out is turned round."""

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, params: dict[str, Any]) -> None:
        forwards = onnx.NodeProto()
        forwards.CopyFrom(node)
        self.turned = {a.name: list(a.ints) for a in node.attribute if a.name.endswith("directions")}
        kept = [a for a in node.attribute if a.name not in self.turned]
        del forwards.attribute[:]
        forwards.attribute.extend(kept)
        super().__init__(forwards, params)

    def _run(self, *args: Any, **attrs: Any) -> tuple[Any, ...]:
        states = len(args) - self.num_scan_inputs
        made = super()._run(*args[:states], *self._turn(args[states:], "scan_input_directions"), **attrs)
        return (*made[:states], *self._turn(made[states:], "scan_output_directions"))

    def _turn(self, values: tuple[Any, ...], name: str) -> list[Any]:
        directions = self.turned.get(name) or [0] * len(values)
        return [np.flip(v, 0) if d else v for v, d in zip(values, directions, strict=True)]
