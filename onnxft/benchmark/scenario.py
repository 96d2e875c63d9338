"""The measurement that every side goes through: first step, warm-up, steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from onnxft.benchmark.config import BenchConfig
from onnxft.errors import DivergedError


@dataclass(frozen=True)
class Times:
    """Seconds, and the loss of the first step."""

    first_step: float
    warmup: tuple[float, ...]
    steps: tuple[float, ...]
    loss: float


def measure(step: Callable[[], float], config: BenchConfig, clock: Callable[[], float] = time.perf_counter) -> Times:
    """Run `step` until `min_steps` and `min_seconds` are both reached, at most `max_steps` times.

    `step` returns the loss, so a time ends when the result was read. DivergedError if one is not finite.
    """
    done = 0

    def timed() -> tuple[float, float]:
        nonlocal done
        start = clock()
        loss = step()
        seconds = clock() - start
        done += 1
        if not math.isfinite(loss):
            raise DivergedError(f"the loss of step {done} is {loss}. Benchmark with a smaller 'lr' than {config.lr}.")
        return seconds, loss

    first, loss = timed()
    warmup = tuple(timed()[0] for _ in range(config.warmup_steps))
    steps: list[float] = []
    total = 0.0
    while len(steps) < config.max_steps and (len(steps) < config.min_steps or total < config.min_seconds):
        steps.append(timed()[0])
        total += steps[-1]
    return Times(first, warmup, tuple(steps), loss)
