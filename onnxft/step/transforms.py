"""Small transforms of gradients, from which optimizers are chained.

A transform takes the gradient `g` of one parameter `p` and returns what stands for it further down
the chain, with the new value of each of its state slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, constant, table


@dataclass
class Scalars:
    """Scalar inputs of the graph that one parameter's update reads."""

    lr: ir.Value
    weight_decay: ir.Value
    step: ir.Value
    shared: dict[str, ir.Value] = field(default_factory=dict)
    """Values that are the same for every parameter of the graph, computed once."""


@dataclass(frozen=True)
class Transform:
    """One link of a chain."""

    slots: tuple[str, ...]
    apply: Callable[[Op, ir.Value, ir.Value, dict[str, ir.Value], Scalars], tuple[ir.Value, dict[str, ir.Value]]]
    """(op, g, p, {slot: value}, scalars) -> (g', {slot: new value})"""


def chain(*links: Transform) -> Transform:
    """Apply `links` one after the other."""

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        new: dict[str, ir.Value] = {}
        for link in links:
            g, changed = link.apply(op, g, p, {s: state[s] for s in link.slots}, scalars)
            new.update(changed)
        return g, new

    return Transform(tuple(s for link in links for s in link.slots), apply)


def scale_by_adam(beta1: float, beta2: float, eps: float) -> Transform:
    """m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,  g' = (m / c₁) / (√v / √c₂ + ε),  cᵢ = 1 - βᵢᵗ

    Kingma and Ba, Adam (2015), algorithm 1; the order of operations is torch.optim.AdamW's.
    """

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        m = op.Add(op.Mul(state["exp_avg"], beta1), op.Mul(g, 1.0 - beta1))
        v = op.Add(op.Mul(state["exp_avg_sq"], beta2), op.Mul(op.Mul(g, g), 1.0 - beta2))
        if "c1" not in scalars.shared:
            c1, c2 = _bias_corrections(op, scalars.step, (beta1, beta2))
            scalars.shared |= {"c1": c1, "root_c2": op.Sqrt(c2)}
        c1, root_c2 = scalars.shared["c1"], scalars.shared["root_c2"]
        denominator = op.Add(op.Div(op.Sqrt(v), root_c2), eps)
        return op.Div(op.Div(m, c1), denominator), {"exp_avg": m, "exp_avg_sq": v}

    return Transform(("exp_avg", "exp_avg_sq"), apply)


def add_decayed_weights() -> Transform:
    """g' = g + λp"""

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        return op.Add(g, op.Mul(p, scalars.weight_decay)), {}

    return Transform((), apply)


def trace(momentum: float) -> Transform:
    """b ← μb + g,  g' = b   (torch.optim.SGD: its first step, b = g, is the same since b starts at 0)"""

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        b = op.Add(op.Mul(state["momentum_buffer"], momentum), g)
        return b, {"momentum_buffer": b}

    return Transform(("momentum_buffer",), apply)


def trace_nesterov(momentum: float) -> Transform:
    """b ← μb + g,  g' = g + μb   (torch.optim.SGD with nesterov=True)"""
    link = trace(momentum)

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        b, changed = link.apply(op, g, p, state, scalars)
        return op.Add(g, op.Mul(b, momentum)), changed

    return Transform(link.slots, apply)


def scale_by_lion(beta1: float, beta2: float) -> Transform:
    """g' = sign(β₁m + (1-β₁)g),  m ← β₂m + (1-β₂)g   (Chen et al., Symbolic Discovery of Optimization, 2023)"""

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        m = state["exp_avg"]
        direction = op.Sign(op.Add(op.Mul(m, beta1), op.Mul(g, 1.0 - beta1)))
        return direction, {"exp_avg": op.Add(op.Mul(m, beta2), op.Mul(g, 1.0 - beta2))}

    return Transform(("exp_avg",), apply)


def scale_by_lr() -> Transform:
    """g' = ηg"""

    def apply(
        op: Op, g: ir.Value, p: ir.Value, state: dict[str, ir.Value], scalars: Scalars
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        return op.Mul(g, scalars.lr), {}

    return Transform((), apply)


def clip_by_value(op: Op, gradients: dict[str, ir.Value], max_value: ir.Value) -> dict[str, ir.Value]:
    """g' = min(max(g, -a), a), element by element   (torch.nn.utils.clip_grad_value_)"""
    low = op.Neg(max_value)
    return {name: op.Clip(g, low, max_value) for name, g in gradients.items()}


def clip_by_global_norm(op: Op, gradients: dict[str, ir.Value], max_norm: ir.Value) -> dict[str, ir.Value]:
    """g' = g · min(1, c / (‖all g‖₂ + 1e-6))   (torch.nn.utils.clip_grad_norm_)"""
    squares = [op.ReduceSumSquare(g, keepdims=0) for g in gradients.values()]
    norm = op.Sqrt(op.Sum(*squares))
    factor = op.Min(op.Div(max_norm, op.Add(norm, 1e-6)), 1.0)
    return {name: op.Mul(g, factor) for name, g in gradients.items()}


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
