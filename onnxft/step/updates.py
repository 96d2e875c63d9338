"""The update of one parameter `p` by its gradient `g`, for each optimizer; and clipping before it.

An update on a CPU takes as long as its passes over the elements. So factors that are the same for every element are
combined as scalars first, once a graph, and the formulas here have the fewest passes: 13 for AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, constant, table
from onnxft.step.row_blocks import RowBlock

State = dict[str, ir.Value]
Gradients = dict[RowBlock, ir.Value]


@dataclass
class Scalars:
    """Scalar inputs of the graph that one parameter's update reads."""

    lr: ir.Value
    weight_decay: ir.Value
    step: ir.Value
    part: ir.Value | None = None
    """1 / w, w the weight of all rows, where gradients are of the sum over them; None: they are of the mean."""
    shared: dict[tuple[str, ir.Value], ir.Value] = field(default_factory=dict)
    """Of every update of the graph: {(what, the input it is of): computed once}."""

    def kept(self, op: Op) -> ir.Value:
        """1 - ηλ, which decoupled weight decay leaves of a parameter."""
        key = ("kept", self.lr)  # a group of parameters has a rate and a decay of its own
        if key not in self.shared:
            self.shared[key] = op.Sub(1.0, op.Mul(self.lr, self.weight_decay))
        return self.shared[key]

    def mean(self, op: Op, g: ir.Value) -> ir.Value:
        """g / w"""
        return g if self.part is None else op.Mul(g, self.part)

    def share(self, op: Op, g: ir.Value, beta: float) -> ir.Value:
        """(1-β)g / w, of which an average takes βm + (1-β)g / w."""
        if self.part is None:
            return op.Mul(g, 1.0 - beta)
        key = (f"share {beta}", self.part)
        if key not in self.shared:
            self.shared[key] = op.Mul(self.part, 1.0 - beta)
        return op.Mul(g, self.shared[key])


@dataclass(frozen=True)
class Update:
    """What an optimizer makes of a parameter."""

    slots: tuple[str, ...]
    apply: Callable[[Op, ir.Value, ir.Value, State, Scalars], tuple[ir.Value, State]]
    """(op, g, p, {slot: value}, scalars) -> (new p, {slot: new value})"""


def adamw(beta1: float, beta2: float, eps: float) -> Update:
    """p ← (1 - ηλ)p - η adam(g)   (Loshchilov and Hutter 2019; torch.optim.AdamW)"""

    def apply(op: Op, g: ir.Value, p: ir.Value, state: State, scalars: Scalars) -> tuple[ir.Value, State]:
        delta, new = _adam(op, scalars.share(op, g, beta1), state, scalars, (beta1, beta2), eps)
        return op.Sub(op.Mul(p, scalars.kept(op)), delta), new

    return Update(("exp_avg", "exp_avg_sq"), apply)


def adam(beta1: float, beta2: float, eps: float) -> Update:
    """p ← p - η adam(g + λp)   (Kingma and Ba 2015; torch.optim.Adam)"""

    def apply(op: Op, g: ir.Value, p: ir.Value, state: State, scalars: Scalars) -> tuple[ir.Value, State]:
        share = op.Mul(_decayed(op, g, p, scalars), 1.0 - beta1)
        delta, new = _adam(op, share, state, scalars, (beta1, beta2), eps)
        return op.Sub(p, delta), new

    return Update(("exp_avg", "exp_avg_sq"), apply)


def lion(beta1: float, beta2: float) -> Update:
    """p ← (1 - ηλ)p - η sign(β₁m + (1-β₁)g),  m ← β₂m + (1-β₂)g   (Chen et al. 2023, algorithm 2)"""

    def apply(op: Op, g: ir.Value, p: ir.Value, state: State, scalars: Scalars) -> tuple[ir.Value, State]:
        m = state["exp_avg"]
        direction = op.Sign(_average(op, m, scalars.share(op, g, beta1), beta1))
        new = op.Sub(op.Mul(p, scalars.kept(op)), op.Mul(direction, scalars.lr))
        return new, {"exp_avg": _average(op, m, scalars.share(op, g, beta2), beta2)}

    return Update(("exp_avg",), apply)


def sgd(momentum: float, nesterov: float) -> Update:
    """p ← p - ηb,  b ← μb + g + λp,  with nesterov p ← p - η(g + λp + μb)   (torch.optim.SGD)

    Its first step, b = g + λp, is the same since b starts at 0.
    """

    def apply(op: Op, g: ir.Value, p: ir.Value, state: State, scalars: Scalars) -> tuple[ir.Value, State]:
        direction = g = _decayed(op, g, p, scalars)
        new: State = {}
        if momentum:
            b = new["momentum_buffer"] = op.Add(op.Mul(state["momentum_buffer"], momentum), g)
            direction = op.Add(g, op.Mul(b, momentum)) if nesterov else b
        return op.Sub(p, op.Mul(direction, scalars.lr)), new

    return Update(("momentum_buffer",) if momentum else (), apply)


def clipped(op: Op, sums: Gradients, weight_sum: ir.Value, max_value: ir.Value, max_norm: ir.Value) -> Gradients:
    """w clip(s / w) of sums s over the weight w: clip(g) = m · min(1, c / (‖all m‖₂ + 1e-6)), m = min(max(g, -a), a)

    torch.nn.utils.clip_grad_value_, then clip_grad_norm_, in three passes.
    """
    high = op.Mul(max_value, weight_sum)
    low = op.Neg(high)
    within = {block: op.Clip(s, low, high) for block, s in sums.items()}
    norm = op.Div(op.Sqrt(op.Sum(*(op.ReduceSumSquare(s, keepdims=0) for s in within.values()))), weight_sum)
    factor = op.Min(op.Div(max_norm, op.Add(norm, 1e-6)), 1.0)
    return {block: op.Mul(s, factor) for block, s in within.items()}


def _decayed(op: Op, g: ir.Value, p: ir.Value, scalars: Scalars) -> ir.Value:
    """g / w + λp"""
    return op.Add(scalars.mean(op, g), op.Mul(p, scalars.weight_decay))


def _average(op: Op, m: ir.Value, share: ir.Value, beta: float) -> ir.Value:
    """βm + (1-β)g from m and the share (1-β)g"""
    return op.Add(op.Mul(m, beta), share)


def _adam(
    op: Op, share: ir.Value, state: State, scalars: Scalars, betas: tuple[float, float], eps: float
) -> tuple[ir.Value, State]:
    """η (m / c₁) / (√v / √c₂ + ε),  m ← β₁m + u,  v ← β₂v + (1-β₂)g²,  cᵢ = 1 - βᵢᵗ,  from the share u = (1-β₁)g

    It is ρ m / (√v + ε√c₂) with the scalar ρ = η√c₂ / c₁, and g² is u² / (1-β₁)², so that g itself, which may be a sum
    over many rows, needs no pass. Kingma and Ba, Adam (2015), algorithm 1, with ε where torch.optim.Adam has it.
    """
    beta1, beta2 = betas
    m = _average(op, state["exp_avg"], share, beta1)
    square = op.Mul(op.Mul(share, share), (1.0 - beta2) / (1.0 - beta1) ** 2)
    v = _average(op, state["exp_avg_sq"], square, beta2)
    rate, small = _adam_scalars(op, scalars, betas, eps)
    delta = op.Mul(op.Div(m, op.Add(op.Sqrt(v), small)), rate)
    return delta, {"exp_avg": m, "exp_avg_sq": v}


def _adam_scalars(op: Op, scalars: Scalars, betas: Sequence[float], eps: float) -> tuple[ir.Value, ir.Value]:
    """ρ = η√c₂ / c₁, and ε√c₂"""
    shared, lr, step = scalars.shared, scalars.lr, scalars.step
    if ("small", step) not in shared:
        c1, c2 = _bias_corrections(op, step, betas)
        root = op.Sqrt(c2)
        shared["correction", step], shared["small", step] = op.Div(root, c1), op.Mul(root, eps)
    if ("rate", lr) not in shared:
        shared["rate", lr] = op.Mul(lr, shared["correction", step])
    return shared["rate", lr], shared["small", step]


def _bias_corrections(op: Op, step: ir.Value, betas: Sequence[float]) -> list[ir.Value]:
    """1 - βᵗ of each β, as scalars: with x = t·log β / 2 it is -2n / (d - n) where βᵗ is close to 1, else 1 - e²ˣ

    n / d = x(945 + 105x² + x⁴) / (945 + 420x² + 15x⁴) is tanh(x), within 1e-13 for |x| < ¼ (Lambert's continued
    fraction). The plain form loses four digits in float32 at the first steps, and Tanh as many on GPUs, whose kernels
    make it of exponentials.
    """
    logs = np.array([math.log(beta) if beta else -100.0 for beta in betas])  # e⁻¹⁰⁰ is no part of 1 in any type
    x = op.Mul(step, constant(op, logs / 2, step))
    s = op.Mul(x, x)
    n = op.Mul(x, op.Add(op.Mul(op.Add(s, 105.0), s), 945.0))
    d = op.Add(op.Mul(op.Add(op.Mul(s, 15.0), 420.0), s), 945.0)
    near_one = op.Div(op.Mul(n, -2.0), op.Sub(d, n))
    corrections = op.Where(op.Greater(x, -0.25), near_one, op.Sub(1.0, op.Exp(op.Add(x, x))))
    return [op.Gather(corrections, table(op, np.array(i))) for i in range(len(betas))]
