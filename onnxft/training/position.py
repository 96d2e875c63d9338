"""Where a run stands, and with which artifacts it came there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onnxft.errors import ArtifactError


@dataclass(frozen=True)
class Stage:
    """The part of a run that one artifact made."""

    artifact: str
    generator: str
    layout: dict[str, int]
    """What decides which rows make a batch: the size of each dimension, and the rows that an epoch leaves out."""
    epoch: int = 0
    """Complete epochs where it begins."""
    batch: int = 0
    """Batches made of the next epoch."""
    step: int = 0
    """Updates made."""


@dataclass
class Position:
    """Where a run stands between two updates; with the session's checkpoint, all that a resume needs."""

    origin: dict[str, str]
    """SHA-256 of what the run was begun with: artifact, data, val; of the artifact, with what it goes on."""
    epoch: int = 0
    """Epochs that are complete."""
    batch: int = 0
    """Batches made of the next epoch."""
    step: int = 0
    """Updates made."""
    loss_sum: float = 0.0
    """Of the batches made of the next epoch, as is weight_sum."""
    weight_sum: float = 0.0
    best: tuple[float, float] = (-math.inf, -math.inf)
    """Best metric, then loss at that epoch, signed so that greater is better."""
    best_epoch: int = 0
    stale: int = 0
    """Epochs since the best one."""
    stages: list[Stage] = field(default_factory=list)
    """Its artifacts, more than one where the generator was changed; none in runs from before they were recorded."""

    def is_of_another(self, generator: str) -> bool:
        """Whether another generator made the run so far."""
        return bool(self.stages) and self.stages[-1].generator != generator

    def take_up(self, stage: Stage, digest: str, run_dir: Path) -> str:
        """Go on with the artifact of another generator, whose manifest has the SHA-256 `digest`; a sentence about it.

        Raises:
            ArtifactError: other rows would make a batch.
        """
        before = self.stages[-1]
        for name in (*before.layout, *stage.layout):
            sizes = [s.layout.get(name, "none") for s in (before, stage)]
            if sizes[0] != sizes[1]:
                raise ArtifactError(
                    f"the run in '{run_dir}' has {name} {sizes[0]}, and the artifact '{stage.artifact}' makes it "
                    f"{sizes[1]}: batches would be others. Export it as '{before.artifact}' was, or begin a new run "
                    "with the weights alone (--weights)."
                )
        self.stages.append(Stage(stage.artifact, stage.generator, stage.layout, self.epoch, self.batch, self.step))
        self.origin["artifact"] = digest
        return (
            f"update {self.step + 1} on: '{stage.artifact}' of the generator '{stage.generator}', before it "
            f"'{before.artifact}' of '{before.generator}'"
        )

    @property
    def history(self) -> list[dict[str, object]]:
        """Each artifact, and where it begins."""
        return [{k: v for k, v in asdict(stage).items() if k != "layout"} for stage in self.stages]
