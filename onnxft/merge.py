"""How parameters that a method added to a model go into its weights: a part of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["lora_A", "lora_B"]
LORA_A: Rule = "lora_A"
LORA_B: Rule = "lora_B"
"""What the names of a low-rank adapter's factors end with."""


@dataclass(frozen=True)
class Merge:
    """How an added parameter is merged into a model parameter for inference: W' = W + alpha / rank B A."""

    target: str
    """Name of W, which is frozen."""
    rule: Rule
    """Which factor it is: A (rank, in, *kernel) or B (out, rank, 1, ...)."""
    alpha: float
    target_shape: tuple[int, ...]
    transposed: bool = False
    """Whether W is stored as (in, out)."""
    dropout: float = 0.0
    """Of what goes to A in training."""
