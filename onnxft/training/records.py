"""The directory of a run: what was asked, what happened, and what came out of it.

config.yaml               the effective configuration
env.json                  versions, device, provider asked for and obtained
results.csv               one row an epoch; equal for equal runs, so without time and memory
timings.csv               seconds, samples a second and memory of each epoch
weights/best.safetensors  trained parameters and running statistics of the best epoch and of the last one
weights/last.safetensors
checkpoints/last/         all that a resumed run needs
model.onnx                inference model with the best weights
curves.png                results.csv as a picture, where matplotlib is installed
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load, save

from onnxft import __version__
from onnxft.errors import ArtifactError, ConfigError
from onnxft.files import new_directory, recover, write_atomically
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig, read_yaml
from onnxft.training.curves import can_plot, plot_curves

Row = dict[str, float]
_POSITION = "loop.json"
_FILES = (
    "model.onnx", "weights/best.safetensors", "weights/last.safetensors", "results.csv", "timings.csv", "curves.png",
    "config.yaml", "env.json", "checkpoints/last",
)  # fmt: skip


@dataclass
class Position:
    """Where a run stands between two updates; with the session's checkpoint, all that a resume needs."""

    origin: dict[str, str]
    """SHA-256 of what the run was begun with: artifact, data, val."""
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


@dataclass
class Records:
    """An open run directory."""

    directory: Path
    rows: list[Row] = field(default_factory=list)
    """Lines of results.csv, in order of their epochs."""
    timings: list[Row] = field(default_factory=list)

    @classmethod
    def create(cls, directory: Path, config: TrainConfig, session: TrainSession) -> Records:
        """A new run directory with config.yaml and env.json; ConfigError if anything is there already."""
        require_new(directory)
        records = cls(directory)
        records.describe(config, session)
        return records

    @classmethod
    def reopen(cls, directory: Path, session: TrainSession) -> tuple[Records, Position]:
        """A run as it was at its checkpoint, which `session` takes over; nothing is written yet.

        Raises:
            ArtifactError: there is no checkpoint, or it is damaged or of another artifact.
        """
        place = recover(directory / "checkpoints" / "last")
        try:
            position = msgspec.json.decode((place / _POSITION).read_bytes(), type=Position)
        except FileNotFoundError:
            raise ArtifactError(f"'{directory}' holds no checkpoint to resume. Begin a new run.") from None
        except msgspec.MsgspecError as err:
            raise ArtifactError(f"'{place / _POSITION}' is damaged: {err}. Begin a new run.") from err
        session.load_checkpoint(place)
        tables = (_read(directory / name, position.epoch) for name in ("results.csv", "timings.csv"))
        return cls(directory, *tables), position

    def describe(self, config: TrainConfig, session: TrainSession) -> None:
        """Write config.yaml and env.json, and cut the tables back to what is in memory."""
        write_atomically(self.directory / "config.yaml", config.to_yaml().encode())
        write_atomically(self.directory / "env.json", json.dumps(_environment(session), indent=1).encode())
        if self.rows:
            self._write_tables()

    def save_epoch(self, session: TrainSession, position: Position, row: Row, timing: Row) -> None:
        """Record a complete epoch: weights, tables, checkpoint."""
        weights = save({**session.parameters, **session.buffers})
        write_atomically(self.directory / "weights" / "last.safetensors", weights)
        if position.best_epoch == position.epoch:
            write_atomically(self.directory / "weights" / "best.safetensors", weights)
        self.rows.append(row)
        self.timings.append(timing)
        self._write_tables()
        self.save_checkpoint(session, position)

    def save_checkpoint(self, session: TrainSession, position: Position) -> None:
        """Replace checkpoints/last; a crash leaves the old or the new one."""
        with new_directory(self.directory / "checkpoints" / "last") as beside:
            session.save_checkpoint(beside / "session")
            for file in (beside / "session").iterdir():
                file.replace(beside / file.name)
            (beside / "session").rmdir()
            write_atomically(beside / _POSITION, msgspec.json.encode(position))

    def finish(self, session: TrainSession, best_epoch: int) -> None:
        """Write model.onnx with the best weights, and curves.png where it can be; `session` keeps its weights."""
        last = {**session.parameters, **session.buffers}
        session.set_parameters(load((self.directory / "weights" / "best.safetensors").read_bytes()))
        session.export_model(self.directory / "model.onnx")
        session.set_parameters(last)
        if can_plot():
            write_atomically(self.directory / "curves.png", plot_curves(self.rows, best_epoch))

    @property
    def files(self) -> tuple[str, ...]:
        """What is there, relative to the directory, checkpoints as one."""
        return tuple(name for name in _FILES if (self.directory / name).exists())

    def _write_tables(self) -> None:
        write_atomically(self.directory / "results.csv", _table(self.rows))
        write_atomically(self.directory / "timings.csv", _table(self.timings))


def saved_config(directory: Path) -> TrainConfig:
    """The configuration that a run was begun with; ArtifactError where there is no run."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise ArtifactError(f"there is no run to resume in '{directory}'. Leave --resume out to begin one.")
    return TrainConfig.from_mapping(read_yaml(path), f"'{path}'")


def require_new(directory: Path) -> None:
    """ConfigError if anything is in the directory."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"'{directory}' exists already, and a run never writes into another. "
            "Add --resume to continue that run, or name another directory with --run."
        )


def next_directory(runs: Path, name: str) -> Path:
    """`<runs>/<name>-<n>` with the smallest n above all that are there."""
    return runs / f"{name}-{max(_numbers(runs, name), default=0) + 1}"


def newest_directory(runs: Path, name: str) -> Path:
    """`<runs>/<name>-<n>` with the greatest n; ArtifactError where there is none."""
    found = _numbers(runs, name)
    if not found:
        raise ArtifactError(f"there is no run '{runs / name}-<n>' to resume. Name the run with --run.")
    return runs / f"{name}-{max(found)}"


def _numbers(runs: Path, name: str) -> list[int]:
    tails = [p.name.removeprefix(f"{name}-") for p in runs.glob("*") if p.name.startswith(f"{name}-")]
    return [int(tail) for tail in tails if tail.isdecimal()]


def _table(rows: Sequence[Mapping[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else repr(v) for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def _read(path: Path, last_epoch: int) -> list[Row]:
    """The rows of a table up to an epoch."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["epoch"] <= last_epoch]


def _number(text: str) -> float:
    if not text:
        return math.nan
    return int(text) if text.isdecimal() else float(text)


def _environment(session: TrainSession) -> dict[str, object]:
    placement = session.placement
    return {
        "versions": {
            "onnxft": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **placement.versions,
        },
        "placement": {k: v for k, v in asdict(placement).items() if k != "versions"},
        "device": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "processor": _processor(),
            "logical_cores": os.cpu_count(),
        },
        "artifact": {
            "name": session.manifest.name,
            "generator": session.manifest.generator,
            "versions": session.manifest.versions,
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
