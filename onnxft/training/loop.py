"""The loop: load, for batch, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.runtime.engine import Placement
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig, resumed
from onnxft.training.data import Array, Dataset
from onnxft.training.epoch import evaluate, update
from onnxft.training.interrupt import Interrupt
from onnxft.training.metrics import BETTER
from onnxft.training.plan import Plan
from onnxft.training.progress import Progress, resident_bytes
from onnxft.training.records import (
    Position,
    Records,
    Row,
    newest_directory,
    next_directory,
    require_new,
    saved_config,
)

Data = Path | str | Mapping[str, Array] | Dataset
"""An `.npz` file, arrays by name, or a data set."""


@dataclass(frozen=True)
class Start:
    """What is known when the session is open and before the first step."""

    manifest: Manifest
    placement: Placement
    config: TrainConfig
    directory: Path
    batch_size: int
    rows: int
    """Rows of the training data."""
    rows_left_out: int
    """Rows that each epoch leaves out: where rows cannot be weighted, a short batch cannot be padded."""


@dataclass(frozen=True)
class Run:
    """What came out of a training run."""

    directory: Path
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


def run(
    artifact: Path | str,
    data: Data,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    val: Data | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Start], None] | None = None,
) -> Run:
    """Fine-tune an artifact on a data set.

    Args:
        artifact: directory written by `onnxft export`.
        data: inputs by the names of the exported graph and `labels`, optionally `sample_weights`; all (rows, ...).
        config: options; a mapping sets some of them, over the defaults or over those of the run to resume.
        val: rows to evaluate on; None evaluates on `data`.
        run_dir: None: `runs/<artifact name>-<n>`, a new one or, with `resume`, the newest.
        resume: continue the run from its last checkpoint.
        progress: shows the run.
        announce: called once before the first step.

    Raises:
        OnnxftError: whatever does not fit; see `training.loop.train` and `TrainSession`.
    """
    manifest = Manifest.load(Path(artifact))
    directory = _directory(run_dir, manifest.name, resume)
    asked = config.to_dict() if isinstance(config, TrainConfig) else dict(config or {})
    effective = resumed(saved_config(directory), asked) if resume else TrainConfig.from_mapping(asked)
    train_data, val_data = _dataset(data), None if val is None else _dataset(val)
    with TrainSession(
        artifact,
        effective.provider,
        threads=effective.threads,
        batch_size=effective.batch_size,
        dimensions=effective.dimensions,
        seed=effective.seed,
    ) as session:
        if announce is not None:
            announce(_start(session, effective, directory, len(train_data)))
        return train(session, train_data, val_data, effective, directory, progress, resume=resume)


def _directory(run_dir: Path | str | None, name: str, resume: bool) -> Path:
    runs = Path("runs")
    if run_dir is None:
        return newest_directory(runs, name) if resume else next_directory(runs, name)
    directory = Path(run_dir)
    if not resume:
        require_new(directory)
    return directory


def _dataset(data: Data) -> Dataset:
    if isinstance(data, Dataset):
        return data
    return (
        Dataset.load(Path(data))
        if isinstance(data, Path | str)
        else Dataset({k: np.asarray(v) for k, v in data.items()})
    )


def _start(session: TrainSession, config: TrainConfig, directory: Path, rows: int) -> Start:
    left_out = 0 if session.supports_weights else rows % session.batch_size
    return Start(session.manifest, session.placement, config, directory, session.batch_size, rows, left_out)


def train(
    session: TrainSession,
    data: Dataset,
    val: Dataset | None,
    config: TrainConfig,
    run_dir: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
) -> Run:
    """Train an open session and record everything in `run_dir`.

    Args:
        session: opened with the provider, threads, batch size and seed of `config`.
        data: rows to train on.
        val: rows to evaluate on; None evaluates on `data`.
        config: what to do.
        run_dir: a new directory, or with `resume` that of the run to continue.
        progress: shows the run; None shows nothing.
        resume: continue from checkpoints/last, bit for bit where the provider is deterministic.

    Raises:
        DataError: the data does not fit the model.
        ConfigError: the options do not fit the model, the data, or each other; or the directory is in use.
        ArtifactError: there is no checkpoint to resume, or it belongs to other data or another artifact.
        DivergedError: a loss is not finite; what was saved before stays.
    """
    progress = progress or Progress()
    plan = Plan.make(session, data, val, config)
    records, position = _resume(session, plan, run_dir) if resume else _begin(session, plan, run_dir)
    with Interrupt() as interrupt, progress:
        if not records.rows:
            _end_epoch(session, plan, position, records, progress)
        while position.epoch < config.epochs and not plan.gives_up(position):
            progress.begin_epoch(position.epoch + 1, config.epochs, plan.batches, position.batch)
            started, rows = time.perf_counter(), 0
            for group in plan.groups(position):
                rows += update(session, group, plan, position, progress)
                if interrupt.asked:
                    records.save_checkpoint(session, position)
                    return _result(records, plan, position, "interrupted")
            speed = {"seconds": time.perf_counter() - started, "rows": rows}
            _end_epoch(session, plan, position, records, progress, speed)
        records.finish(session, position.best_epoch)
    return _result(records, plan, position, "complete" if position.epoch >= config.epochs else "early")


def _begin(session: TrainSession, plan: Plan, run_dir: Path) -> tuple[Records, Position]:
    return Records.create(run_dir, plan.config, session), Position(plan.origin)


def _resume(session: TrainSession, plan: Plan, run_dir: Path) -> tuple[Records, Position]:
    resumed(saved_config(run_dir), plan.config.to_dict())
    records, position = Records.reopen(run_dir, session)
    plan.require_origin(position, run_dir)
    done = position.epoch + (position.batch > 0)
    if plan.config.epochs < done:
        raise ConfigError(
            f"the run in '{run_dir}' is in epoch {done}: it cannot end after epochs {plan.config.epochs}."
        )
    records.describe(plan.config, session)
    return records, position


def _end_epoch(
    session: TrainSession,
    plan: Plan,
    position: Position,
    records: Records,
    progress: Progress,
    speed: Row | None = None,
) -> None:
    """Evaluate, choose the best weights and save; before training (`speed` None) as epoch 0."""
    epoch = 0 if speed is None else position.epoch + 1
    started = time.perf_counter()
    scores = evaluate(session, plan, epoch)
    timing = _timing(epoch, speed or {"seconds": math.nan, "rows": 0}, time.perf_counter() - started)
    row: Row = {
        "epoch": epoch,
        "step": position.step,
        "lr": plan.lr(position.step - 1) if epoch else math.nan,
        "loss": position.loss_sum / position.weight_sum if epoch else math.nan,
        **{f"{plan.split}_{name}": value for name, value in scores.items()},
    }
    # Equal metrics are common on small data: the lower loss decides then.
    score = (BETTER[plan.metric] * scores[plan.metric], -scores["loss"])
    if score > position.best:
        position.best, position.best_epoch, position.stale = score, epoch, 0
    else:
        position.stale += 1
    position.epoch, position.batch, position.loss_sum, position.weight_sum = epoch, 0, 0.0, 0.0
    records.save_epoch(session, position, row, timing)
    progress.end_epoch(row)


def _timing(epoch: int, speed: Row, evaluation_seconds: float) -> Row:
    memory = resident_bytes()
    return {
        "epoch": epoch,
        "train_seconds": speed["seconds"],
        "samples_per_second": speed["rows"] / speed["seconds"],
        "evaluation_seconds": evaluation_seconds,
        "resident_bytes": math.nan if memory is None else memory,
    }


def _result(records: Records, plan: Plan, position: Position, end: Literal["complete", "early", "interrupted"]) -> Run:
    before, after = (
        {k.removeprefix(f"{plan.split}_"): v for k, v in records.rows[epoch].items() if k.startswith(f"{plan.split}_")}
        for epoch in (0, position.best_epoch)
    )
    return Run(
        records.directory, end, plan.split, plan.provider, plan.metric, before, after,
        position.best_epoch, position.epoch, records.files,
    )  # fmt: skip
