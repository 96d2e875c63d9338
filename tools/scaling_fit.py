"""How numbers grow with a size: the exponent of a power, and a polynomial with what lies beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEAST_GROWTH = 0.2
"""Of memory, as a part of the peak: where it grows less, what is beside the line is compared with this."""


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """p of y ∝ x^p: the slope of log y over log x by least squares; None for fewer than two sizes."""
    if len(set(x)) < 2:
        return None
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


@dataclass(frozen=True)
class Polynomial:
    """c_0 + c_1 x + c_2 x² ..."""

    coefficients: tuple[float, ...]
    off: float
    """The furthest of the points from it, as a part of their growth."""

    @property
    def fixed(self) -> float:
        """c_0"""
        return self.coefficients[0]

    def __call__(self, x: float) -> float:
        """Its value."""
        return sum(c * x**i for i, c in enumerate(self.coefficients))


def fit(x: Sequence[float], y: Sequence[float], degree: int) -> Polynomial | None:
    """By least squares; None where the points are so few that any polynomial of the degree would pass through."""
    if len(set(x)) < degree + 2:
        return None
    # Scaled: powers of a number of pixels would leave nothing of the digits.
    largest = max(x)
    scaled = np.polynomial.polynomial.polyfit(np.asarray(x, float) / largest, np.asarray(y, float), degree)
    line = Polynomial(tuple(float(c) / largest**i for i, c in enumerate(scaled)), 0.0)
    growth = max(max(y) - min(y), LEAST_GROWTH * max(y))
    return replace(line, off=max(abs(line(a) - b) for a, b in zip(x, y, strict=True)) / growth)
