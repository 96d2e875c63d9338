"""What a session goes on from, in memory: a checkpoint is one that was written."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxft.arrays import Arrays
from onnxft.runtime.loss_scale import LossScale


@dataclass(frozen=True)
class Snapshot:
    """All that a session goes on from, between two updates."""

    step_count: int
    seed: int
    loss_scale: LossScale
    values: Arrays
    """Trained parameters and running statistics."""
    state: Arrays
    """Of the optimizer, keyed `parameter/slot`."""
    averages: Arrays
    """Of the parameters; empty where there are none."""
    decays: dict[str, float] = field(default_factory=dict)
    """{parameter group: weight decay of the last update}; empty before the first."""
