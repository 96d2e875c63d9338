"""What a run says of itself before its first step, and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxft.manifest import Manifest
from onnxft.runtime.engine import Placement
from onnxft.training.budget import MemoryPlan
from onnxft.training.config import TrainConfig


@dataclass(frozen=True)
class Start:
    """What is known when the session is open and before the first step."""

    manifest: Manifest
    placement: Placement
    config: TrainConfig
    directory: Path
    batch_size: int
    data: str
    """What is trained on."""
    rows: int | None
    """Its rows; None where they are not known before."""
    batches: int
    """Batches of the first epoch."""
    rows_left_out: int
    """Rows that each epoch leaves out: where rows cannot be weighted, a short batch cannot be padded."""
    evaluated: str | None
    """What is evaluated on; None: the training data."""
    rows_evaluated: int | None
    classes: tuple[str, ...]
    weights: str | None = None
    """Which weights it begins with, and how many of what is trained they are; None: the artifact's."""
    processes: int = 1
    """Processes that train together, each on `batch_size` rows of a batch."""
    memory: MemoryPlan | None = None
    """What it is expected to take; None where nobody asked."""
    taken_up: str | None = None
    """From where the run goes on with another generator, and with which; None: with the one it had."""
    recomputes: bool = False
    """Whether the backward pass computes activations again."""


@dataclass(frozen=True)
class Run:
    """What came out of a training run."""

    directory: Path
    config: TrainConfig
    """What was asked for, as it was recorded."""
    end: Literal["complete", "early", "interrupted"]
    """All epochs made, stopped by `patience`, or stopped by Ctrl-C."""
    split: Literal["val", "train"]
    """What was evaluated; `train` where there is no validation data."""
    provider: str
    """What ran it."""
    metric: str
    """What chose the best epoch."""
    before: dict[str, float]
    """{metric: value} before training."""
    after: dict[str, float]
    """{metric: value} of the best epoch."""
    best_epoch: int
    """0 where no epoch was better than the start."""
    epochs: int
    """Epochs made."""
    files: tuple[str, ...]
    """What was written, relative to `directory`."""
    memory: str = ""
    """What was measured against what was expected."""
    process: int = 0
    """Number of the process that gives it; what several have in common is told by the first, 0."""
