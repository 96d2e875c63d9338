"""Learning-rate schedules as factors of the configured rate, with the numbers of `torch.optim.lr_scheduler`.

`t` is the update about to be made (0 for the first), `T` the number of all updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

ONECYCLE_RISE = 0.3
"""Fraction of all updates in which a one-cycle rises, unless told otherwise (torch's `pct_start`)."""
STEP_GAMMA = 0.1
"""Factor of a step unless told otherwise (torch's `gamma`)."""
_ONECYCLE_START = 1 / 25
_ONECYCLE_END = _ONECYCLE_START / 1e4


def constant(t: int, T: int) -> float:
    """F = 1"""
    return 1.0


def linear(t: int, T: int) -> float:
    """F = 1 - t / T      (LinearLR from 1 to 0)"""
    return 1 - t / T


def cosine(t: int, T: int) -> float:
    """F = (1 + cos(pi t / T)) / 2      (CosineAnnealingLR)"""
    return (1 + math.cos(math.pi * t / T)) / 2


def onecycle(t: int, T: int, rise: float = ONECYCLE_RISE) -> float:
    """F rises from 1/25 to 1 at t = top, falls to 1/250000 at t = T - 1, each along half a cosine.

    top = rise * T - 1      (OneCycleLR without its cycle of momentum, which an artifact fixes at export)
    """
    top = rise * T - 1
    if t > top:
        return _between(1.0, _ONECYCLE_END, (t - top) / (T - 1 - top))
    # A rise of exactly one update divides zero by zero in torch; it is at the top at once.
    return _between(_ONECYCLE_START, 1.0, t / top if top > 0 else 1.0)


def step(epoch: int, size: int, gamma: float) -> float:
    """F = gamma ^ floor(epoch / size)      (StepLR, stepped after each epoch; 0 is the first)"""
    return gamma ** (epoch // size)


def _between(a: float, b: float, p: float) -> float:
    """B + (a - b) (1 + cos(pi p)) / 2"""
    return b + (a - b) * (1 + math.cos(math.pi * p)) / 2


_LAID_OUT: dict[str, Callable[[int, int], float]] = {"constant": constant, "linear": linear, "cosine": cosine}
SCHEDULES = (*_LAID_OUT, "onecycle", "step")


def factor(
    schedule: str,
    t: int,
    T: int,
    warmup: float | None = None,
    *,
    epoch: int = 0,
    size: int = 1,
    gamma: float = STEP_GAMMA,
) -> float:
    """Factor of the learning rate for update `t` of `T`; `epoch`, `size` and `gamma` are those of `step`.

    `warmup` is the fraction of all updates in which the rate rises. In a one-cycle it is the rise itself. Before the
    other schedules the rate grows linearly over n = round(warmup * T) updates, f = (t + 1) / (n + 1), and the schedule
    fills the rest (SequentialLR of LinearLR(1 / (n + 1), total_iters=n) and the schedule). Only a step keeps to the
    epochs of the run: there the two factors are multiplied (ChainedScheduler).
    """
    if schedule == "onecycle":
        return onecycle(t, T, ONECYCLE_RISE if warmup is None else warmup)
    n = round((warmup or 0.0) * T)
    rise = (t + 1) / (n + 1) if t < n else 1.0
    if schedule == "step":
        return rise * step(epoch, size, gamma)
    return rise if t < n else _LAID_OUT[schedule](t - n, T - n)
