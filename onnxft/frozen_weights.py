"""How the weights that are not trained are stored, and what that changes: a part of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FrozenPrecision = Literal["float32", "float16", "bfloat16", "int8"]
"""Type in which frozen weights are stored; they are multiplied in float32."""


@dataclass(frozen=True)
class RelativeError:
    """How far values are from those in float32."""

    max: float
    """Largest difference, over the largest value of its tensor."""
    mean: float
    """Sum of the differences over the sum of the values, both without sign, of all tensors."""


@dataclass(frozen=True)
class FrozenWeights:
    """Frozen weights stored in less than float32."""

    precision: FrozenPrecision
    stored: int
    """Number of weights that are stored so: those of products and look-ups; the others stay float32."""
    bytes: int
    """Of all that is frozen, scales included."""
    float32_bytes: int
    """Of the same in float32."""
    weights: RelativeError
    """Of the weights that are stored so."""
    outputs: RelativeError | None = None
    """Of the model's outputs on a random batch, before the first step; None where it does not run on one."""

    @property
    def ratio(self) -> float:
        """Bytes over those in float32."""
        return self.bytes / self.float32_bytes
