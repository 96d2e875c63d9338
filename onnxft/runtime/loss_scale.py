"""Loss scaling: gradients that float16 would round to zero are computed S times as large.

Gradients are of a weighted sum, and weights are an input. So with all sample weights S times as large, S a power of
two, loss sum, weight sum and gradients are S times as large too, exactly, in the graph that is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import DivergedError
from onnxft.manifest import SAMPLE_WEIGHTS

_INTERVAL = 2000
"""Good updates after which the scale is tried twice as large; numbers and rule are those of torch.amp.GradScaler."""
_LEAST = 2.0**-16
_LARGEST = 2.0**100
"""Far from where the largest float32 ends, as sums over a batch come on top."""


@dataclass(frozen=True)
class LossScale:
    """The scale S at one moment of a run, and how it came there."""

    scale: float = 2.0**16
    good: int = 0
    """Updates since it last changed."""
    skipped: int = 0
    """Updates left out because a gradient was not finite."""

    @property
    def sound(self) -> bool:
        """Whether a run can have come there."""
        exponent = np.log2(self.scale) if _LEAST <= self.scale <= _LARGEST else 0.5
        return bool(exponent == np.round(exponent)) and 0 <= self.good < _INTERVAL and 0 <= self.skipped < 2**63

    @property
    def line(self) -> str:
        """What a run's log says of it."""
        return f"{self.skipped} updates left out, as gradients were not finite in float16; loss scale {self.scale:g}"

    def after(self, *, finite: bool) -> LossScale:
        """The scale after an update, or after one that was left out since its gradients were not finite.

        Raises:
            DivergedError: the scale cannot become smaller.
        """
        if finite:
            if self.good + 1 < _INTERVAL:
                return LossScale(self.scale, self.good + 1, self.skipped)
            return LossScale(min(2 * self.scale, _LARGEST), 0, self.skipped)
        if self.scale <= _LEAST:
            raise DivergedError(
                f"gradients are not finite in float16 at any loss scale; the last was {self.scale:g}. Use a lower "
                "learning rate, or the precision bfloat16 or float32."
            )
        return LossScale(self.scale / 2, 0, self.skipped + 1)

    def weighted(self, batch: Arrays) -> dict[str, Array]:
        """The batch with sample weights S times as large."""
        return {**batch, SAMPLE_WEIGHTS: batch[SAMPLE_WEIGHTS] * np.float32(self.scale)}
