"""What follows from session, data and configuration before the first step."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np

from onnxft.data.dataset import Batch, Dataset
from onnxft.data.loading import Loader, RowLoader
from onnxft.data.sampler import Sampler, class_labels
from onnxft.data.share import SharedBatches
from onnxft.data.stream import Stream
from onnxft.errors import ArtifactError, ConfigError, DataError, near
from onnxft.manifest import SAMPLE_WEIGHTS, Manifest
from onnxft.manifest_file import manifest_json
from onnxft.runtime.batches import why_unweighted
from onnxft.runtime.engine import Placement
from onnxft.runtime.processes import Processes
from onnxft.runtime.rates import Rate, by_group
from onnxft.runtime.session import TrainSession
from onnxft.training.budget import MemoryPlan
from onnxft.training.config import TrainConfig
from onnxft.training.metrics import default_metric, names
from onnxft.training.position import Position, Stage
from onnxft.training.schedules import STEP_GAMMA, factor

Data = Dataset | Stream


@dataclass(frozen=True)
class Plan:
    """A run laid out: its data, its batches, its updates."""

    config: TrainConfig
    data: Loader
    evaluated: Loader
    split: Literal["val", "train"]
    classes: tuple[str, ...]
    """Names of the classes, as the data or else the artifact has them."""
    placement: Placement
    metric: str
    batches: tuple[int, ...]
    """Batches of each epoch."""
    rows_left_out: int
    """Rows of the first epoch in short batches, which are left out where rows cannot be weighted."""
    manifest: Manifest
    origin: dict[str, str]
    stage: Stage
    """What the artifact makes of a run that it begins."""
    memory: MemoryPlan | None = None
    """What the run is expected to take."""

    @classmethod
    def make(cls, session: TrainSession, data: Data, val: Data | None, config: TrainConfig) -> Plan:
        """Check everything that can be checked before the first step."""
        manifest = session.manifest
        metric = _metric(config, manifest)
        for name in ("lr_factors", "weight_decays"):
            for group in getattr(config, name):
                if group not in manifest.groups:
                    raise ConfigError(
                        f"{name} names the parameter group '{group}', which '{manifest.name}' has not."
                        f"{near(group, manifest.groups)}"
                    )
        loader = _loader(session, data, config)
        evaluated = _loader(session, data if val is None else val, config, training=False)
        counts = [loader.count(epoch) for epoch in range(config.epochs)]
        if config.accumulate > min(counts):
            raise ConfigError(
                f"accumulate {config.accumulate} is more than the {min(counts)} batches of an epoch "
                f"(batch_size {session.batch_size}, {data.source}). Lower one of the two."
            )
        plan = cls(
            config, loader, evaluated, "train" if val is None else "val",
            manifest.classes if isinstance(data, Stream) else data.classes or manifest.classes,
            session.placement, metric, tuple(counts), _left_out(loader), manifest,
            {
                "artifact": hashlib.sha256(manifest_json(manifest)).hexdigest(),
                "data": loader.fingerprint(),
                "val": "none" if val is None else evaluated.fingerprint(),
            },
            Stage(
                manifest.name, manifest.generator,
                {**session.dimensions, "rows left out of an epoch": _left_out(loader)},
            ),
        )  # fmt: skip
        if config.warmup and round(config.warmup * plan.updates) < 1:
            raise ConfigError(
                f"warmup {config.warmup} of {plan.updates} updates (epochs {config.epochs}) is less than one update. "
                "Raise warmup or epochs, or leave warmup out."
            )
        return plan

    @cached_property
    def _ends(self) -> list[int]:
        """Updates made at the end of each epoch."""
        return list(accumulate(-(-count // self.config.accumulate) for count in self.batches))

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self._ends[-1]

    def require_origin(self, position: Position, run_dir: Path) -> None:
        """ArtifactError unless the run was begun with this artifact and this data."""
        for name, digest in self.origin.items():
            before = position.origin.get(name, "none")
            if before != digest:
                raise ArtifactError(
                    f"the run in '{run_dir}' was begun with other contents of '{name}' (SHA-256 {before[:12]}, "
                    f"now {digest[:12]}). Resume it with the same, or begin a new run."
                )

    def require_same(self, processes: Processes) -> None:
        """DataError unless all processes have the same artifact, data and batches."""
        remedy = "Give all machines the same files under the same names."
        processes.require_same({**self.origin, "batches of each epoch": self.batches}, remedy)

    def groups(self, position: Position) -> Iterator[list[Batch]]:
        """The batches of the epoch in progress that are still to be made, those of one update together.

        Raises:
            DataError: a batch cannot be read.
        """
        group: list[Batch] = []
        with closing(self.data.batches(position.epoch, position.batch)) as remaining:  # type: ignore[type-var]
            while True:
                with self.naming_batch(position, len(group)):
                    batch = next(remaining, None)
                if batch is not None:
                    group.append(batch)
                if group and (batch is None or len(group) == self.config.accumulate):
                    yield group
                    group = []
                if batch is None:
                    return

    def lr(self, step: int) -> float:
        """Learning rate of update `step`, 0 for the first."""
        config = self.config
        gamma = STEP_GAMMA if config.gamma is None else config.gamma
        return config.lr * factor(
            config.schedule, step, self.updates, config.warmup,
            epoch=bisect_right(self._ends, step), size=config.step_size or 1, gamma=gamma,
        )  # fmt: skip

    def rates(self, step: int) -> tuple[Rate, Rate | None]:
        """Learning rate and decay of update `step` as a session takes them."""
        config, lr = self.config, self.lr(step)
        if not (config.lr_factors or config.weight_decays):
            return lr, config.weight_decay
        rates, decays = by_group(self.manifest, lr, config.weight_decay)
        return rates | {g: lr * x for g, x in config.lr_factors.items()}, decays | config.weight_decays

    @contextmanager
    def naming_batch(self, position: Position, place: int) -> Iterator[None]:
        """A DataError of the block says which batch it was: `place` in the update in progress, 0 for the first."""
        try:
            yield
        except DataError as err:
            if err.told is not None:  # another process has said which
                raise
            reason = str(err).rstrip(".")
            raise DataError(
                f"{reason}. This was batch {position.batch + place + 1} of epoch {position.epoch + 1}; "
                f"{self.what_is_kept(position)}"
            ) from err

    def what_is_kept(self, position: Position) -> str:
        """What remains of a run that data ends, and how it goes on."""
        return (
            f"the run keeps what it had after epoch {position.epoch}. Mend the data and go on from those weights with "
            "--weights, or with the same data with --resume."
        )

    def gives_up(self, position: Position) -> bool:
        """Whether `patience` has run out."""
        return self.config.patience is not None and position.stale >= self.config.patience


def _metric(config: TrainConfig, manifest: Manifest) -> str:
    """What chooses the best weights."""
    metric = config.metric or default_metric(manifest.loss)
    if metric not in names(manifest.loss):
        raise ConfigError(
            f"metric '{metric}' cannot be measured on '{manifest.name}', whose loss is {manifest.loss.kind}."
            f"{near(metric, names(manifest.loss))}"
        )
    return metric


def _loader(session: TrainSession, data: Data, config: TrainConfig, *, training: bool = True) -> Loader:
    """The checked data as batches."""
    if isinstance(data, Stream):
        for name in ("balance", "buckets"):
            if getattr(config, name):
                raise ConfigError(
                    f"{name} does not apply to {data.source}, whose batches are made by code. Leave it out."
                )
        return (
            data
            if session.share.processes == 1 or not training
            else SharedBatches(data, session.share, session.processes)
        )
    data.check(session.manifest, session.dimensions)
    if config.buckets and data.lengths is None:
        raise ConfigError(f"buckets are lengths of text, and {data.source} has none. Leave buckets out.")
    share = session.share if training else None
    size = share.whole if share else session.batch_size
    if training and size > len(data):
        each = f" of {session.share.processes} processes together" if size > session.batch_size else ""
        raise DataError(
            f"{data.source} has {len(data)} rows, fewer than the batch size {size}{each}. "
            f"Use --batch-size {max(len(data) // session.share.processes, 1)} or less, or more data."
        )
    if training and not session.supports_weights:
        _require_unweighted(data, session)
    sampler = Sampler(
        len(data), size, config.seed, shuffle=training, drop_short=training and not session.supports_weights,
        labels=class_labels(data.labels, "balance", data.source) if training and config.balance else None,
        ignored=session.manifest.loss.ignore_index,
        lengths=data.lengths, buckets=config.buckets,
    )  # fmt: skip
    dimension = open_dimension(session.manifest) if config.buckets else None
    return RowLoader(
        data, sampler, session.dimensions, open_dimension=dimension, training=training, workers=config.workers,
        share=share,
    )  # fmt: skip


def open_dimension(manifest: Manifest) -> str:
    """The dimension whose sizes buckets are; ConfigError where there is not one alone."""
    if len(manifest.dimensions) != 1:
        has = ", ".join(f"'{d}'" for d in manifest.dimensions) or "none"
        raise ConfigError(
            f"buckets divide texts by the one open dimension of a model, and '{manifest.name}' has {has}. "
            "Leave buckets out, or export with one (--dynamic)."
        )
    return next(iter(manifest.dimensions))


def _require_unweighted(data: Dataset, session: TrainSession) -> None:
    manifest = session.manifest
    if SAMPLE_WEIGHTS in data.read(np.array([0]), sizes=session.dimensions, epoch=None):
        instead = "with --generator native"
        if manifest.buffers or manifest.loss.scalar:
            instead = "without --train-batchnorm" if manifest.buffers else "a model that gives a loss for each row"
        raise DataError(
            f"{data.source} has '{SAMPLE_WEIGHTS}', but {why_unweighted(manifest)}. "
            f"Remove the array, or export {instead}."
        )


def _left_out(loader: Loader) -> int:
    if not isinstance(loader, RowLoader) or not loader.sampler.drop_short:
        return 0
    return len(loader.data) - sum(len(b.rows) for b in loader.sampler.batches(0))
