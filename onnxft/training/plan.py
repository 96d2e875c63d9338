"""What follows from session, data and configuration before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from onnxft.errors import ArtifactError, ConfigError, DataError, near
from onnxft.manifest import LABELS, SAMPLE_WEIGHTS
from onnxft.runtime.batches import why_unweighted
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.data import Array, Dataset, num_batches
from onnxft.training.metrics import default_metric, names
from onnxft.training.records import Position
from onnxft.training.schedules import factor

Batch = dict[str, Array]


@dataclass(frozen=True)
class Plan:
    """A run laid out: its data, its batches, its updates."""

    config: TrainConfig
    data: Dataset
    evaluated: Dataset
    split: Literal["val", "train"]
    provider: str
    metric: str
    batch_size: int
    batches: int
    """Batches of one epoch."""
    drop_short: bool
    """Whether a last short batch is left out, because rows cannot be weighted."""
    updates: int
    """Updates of the whole run."""
    origin: dict[str, str]

    @classmethod
    def make(cls, session: TrainSession, data: Dataset, val: Dataset | None, config: TrainConfig) -> Plan:
        """Check everything that can be checked before the first step."""
        manifest, size = session.manifest, session.batch_size
        metric = config.metric or default_metric(manifest.loss)
        if metric not in names(manifest.loss):
            raise ConfigError(
                f"metric '{metric}' cannot be measured on '{manifest.name}', whose loss is {manifest.loss.kind}."
                f"{near(metric, names(manifest.loss))}"
            )
        data.check(manifest, session.dimensions)
        if val is not None:
            val.check(manifest, session.dimensions)
        if size > len(data):
            raise DataError(
                f"{data.source} has {len(data)} rows ('{LABELS}'), fewer than the batch size {size}. "
                f"Use --batch-size {len(data)} or less, or more data."
            )
        if not session.supports_weights and SAMPLE_WEIGHTS in data.arrays:
            instead = "without --train-batchnorm" if manifest.buffers else "with --generator native"
            raise DataError(
                f"{data.source} has '{SAMPLE_WEIGHTS}', but {why_unweighted(manifest)}. "
                f"Remove the array, or export {instead}."
            )
        batches = num_batches(len(data), size, drop_short=not session.supports_weights)
        if config.accumulate > batches:
            raise ConfigError(
                f"accumulate {config.accumulate} is more than the {batches} batches of an epoch "
                f"(batch_size {size}, {len(data)} rows). Lower one of the two."
            )
        updates = -(-batches // config.accumulate) * config.epochs
        if config.warmup and round(config.warmup * updates) < 1:
            raise ConfigError(
                f"warmup {config.warmup} of {updates} updates (epochs {config.epochs}) is less than one update. "
                "Raise warmup or epochs, or leave warmup out."
            )
        return cls(
            config, data, data if val is None else val, "train" if val is None else "val",
            session.placement.obtained, metric, size, batches, not session.supports_weights, updates,
            {
                "artifact": hashlib.sha256(manifest.to_json()).hexdigest(),
                "data": data.fingerprint(),
                "val": "none" if val is None else val.fingerprint(),
            },
        )  # fmt: skip

    def require_origin(self, position: Position, run_dir: Path) -> None:
        """ArtifactError unless the run was begun with this artifact and this data."""
        for name, digest in self.origin.items():
            before = position.origin.get(name, "none")
            if before != digest:
                raise ArtifactError(
                    f"the run in '{run_dir}' was begun with other contents of '{name}' (SHA-256 {before[:12]}, "
                    f"now {digest[:12]}). Resume it with the same, or begin a new run."
                )

    def groups(self, position: Position) -> Iterator[list[Batch]]:
        """The batches of the epoch in progress that are still to be made, those of one update together."""
        batches = self.data.batches(
            self.batch_size, seed=self.config.seed, epoch=position.epoch, drop_short=self.drop_short
        )
        remaining = islice(batches, position.batch, None)
        while group := list(islice(remaining, self.config.accumulate)):
            yield group

    def lr(self, step: int) -> float:
        """Learning rate of update `step`, 0 for the first."""
        return self.config.lr * factor(self.config.schedule, step, self.updates, self.config.warmup)

    def gives_up(self, position: Position) -> bool:
        """Whether `patience` has run out."""
        return self.config.patience is not None and position.stale >= self.config.patience
