"""Step times in numbers: summary, and the ratio of two sides with its spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Seconds per step, and rows per second."""

    count: int
    mean: float
    std: float
    """Standard deviation of the sample (n - 1)."""
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float
    samples_per_second: float


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the reference, with its standard deviation."""

    value: float
    spread: float
    over: Literal["steps", "repeats"] = "steps"
    """What the deviation is of: the steps of both sides, or the ratios of the single repeats."""


def summarize(seconds: Sequence[float], batch_size: int) -> Summary:
    """samples_per_second = batch_size / mean; percentiles are interpolated linearly. At least two times."""
    times = np.asarray(seconds, dtype=np.float64)
    p50, p90, p95, p99 = (float(q) for q in np.percentile(times, [50, 90, 95, 99]))
    mean = float(times.mean())
    return Summary(
        count=len(times),
        mean=mean,
        std=float(times.std(ddof=1)),
        minimum=float(times.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        maximum=float(times.max()),
        samples_per_second=batch_size / mean,
    )


def speed_ratio(side: Summary, reference: Summary) -> Ratio:
    """Speed ratio: r = ref / side,   s_r = r * sqrt((s_side / side)² + (s_ref / ref)²)

    of the means and their standard deviations, errors taken as independent and small: the formula of hyperfine's
    `Relative` column (https://en.wikipedia.org/wiki/Propagation_of_uncertainty).
    """
    r = reference.mean / side.mean
    return Ratio(r, r * math.sqrt((side.std / side.mean) ** 2 + (reference.std / reference.mean) ** 2))


def repeated_ratio(means: Sequence[float], reference: Sequence[float]) -> Ratio:
    """r_i = ref_i / side_i of each repeat i;   r = mean of r_i, spread = their standard deviation (n - 1)

    A repeat runs both sides one soon after the other, so what slows the machine for a while slows both, and cancels.
    """
    ratios = np.asarray(reference, np.float64) / np.asarray(means, np.float64)
    return Ratio(float(ratios.mean()), float(ratios.std(ddof=1)), "repeats")
