"""What a step and an evaluation give back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from onnxft.arrays import Array
from onnxft.runtime.engine import Sums


class StepResult:
    """Loss and metrics of one step; read from the device when asked for."""

    def __init__(self, sums: Sums) -> None:
        """Wrap the sums of a run."""
        self._sums = sums

    @cached_property
    def _values(self) -> tuple[float, float, dict[str, float]]:
        return self._sums.read()

    @property
    def weight_sum(self) -> float:
        """Total weight of the rows."""
        return self._values[1]

    @property
    def loss(self) -> float:
        """Weighted mean of the loss before the step; NaN for a batch of weight 0."""
        return mean(self._values[0], self._values[1])

    @property
    def metrics(self) -> dict[str, float]:
        """Weighted means of the metrics that the training graph computes."""
        return {name: mean(value, self._values[1]) for name, value in self._values[2].items()}


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation."""

    loss: float
    metrics: dict[str, float]
    outputs: dict[str, Array]
    """{output name: (rows, ...) array}"""
    weight_sum: float = 0.0
    """Total weight of the rows."""


def mean(total: float, weight: float) -> float:
    """total / weight; NaN for a weight of 0."""
    return total / weight if weight > 0 else math.nan
