"""The directory of a run: what was asked, what happened, and what came out of it.

config.yaml               the effective configuration
env.json                  versions, device, provider asked for and obtained
results.csv               one row an epoch; equal for equal runs, so without time and memory
timings.csv               seconds, samples a second and memory of each epoch
weights/best.safetensors  trained parameters (their averages with `ema`) and running statistics of the best epoch
weights/last.safetensors  and of the last one
checkpoints/last/         all that a resumed run needs
model.onnx                inference model with the best weights
adapter/                  of a model trained with LoRA: for peft and ONNX Runtime, with the best weights
metrics.json              how the run ended: asked and obtained, metrics before, at the best epoch and at the last
memory.json               what memory was estimated, by parts, and what it came to
confusion_matrix.csv      counts of (label, predicted class) of the best epoch, where a row has one class
confusion_matrix.png      the same as a picture, and
curves.png                results.csv as one, where matplotlib is installed
train.log                 what the run said
events.out.tfevents.*     for TensorBoard, with `tensorboard`
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from onnxft import __version__
from onnxft.arrays import Arrays
from onnxft.errors import ArtifactError, ProviderError
from onnxft.files import new_directory, new_file, recover, remove_parts, sha256, write_atomically
from onnxft.runtime.session import TrainSession
from onnxft.tensor_file import write_tensors
from onnxft.training.config import TrainConfig
from onnxft.training.confusion import Confusion
from onnxft.training.curves import can_plot, plot_curves
from onnxft.training.position import Position
from onnxft.training.result_tables import RESULTS, TIMINGS, Row, read_table, table_bytes
from onnxft.training.run_directory import require_new
from onnxft.training.warm_start import read_weights

T = TypeVar("T")
_POSITION = "loop.json"
_SUMMARY = "metrics.json"
_MEMORY = "memory.json"
_CONFUSION = "confusion_matrix.csv"
_COMPLETE = "complete.json"
"""{file of the checkpoint: its SHA-256}, written last: without it a checkpoint is not complete.

That of results.csv is of the rows that were there: after a crash the file may have one more.
"""
_FILES = (
    "model.onnx", "adapter/*", "weights/best.safetensors", "weights/last.safetensors", _SUMMARY, _MEMORY, RESULTS,
    TIMINGS, "curves.png", _CONFUSION, "confusion_matrix.png", "train.log", "events.out.tfevents.*", "config.yaml",
    "env.json", "checkpoints/last",
)  # fmt: skip


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
    def reopen(cls, directory: Path, position: Position, session: TrainSession) -> Records:
        """A run as it was at its checkpoint, which `session` takes over; nothing is written yet.

        Raises:
            ArtifactError: the checkpoint is damaged or of another artifact.
        """
        place = recover(directory / "checkpoints" / "last")
        complete = _decoded(place / _COMPLETE, dict[str, str])
        results = complete.pop(RESULTS, None)
        # What is there without a digest was put there by somebody else.
        for name in sorted({*complete, *(file.name for file in place.iterdir())} - {_COMPLETE}):
            if not (place / name).is_file() or sha256(place / name) != complete.get(name):
                raise ArtifactError(
                    f"'{place / name}' is missing, damaged or of another moment than the rest of the checkpoint, so "
                    "this run cannot be resumed. Begin a new run, from its weights if you like: --weights "
                    f"{directory / 'weights' / 'last.safetensors'}."
                )
        session.load_checkpoint(place)
        records = cls(directory, *(read_table(directory / name, position.epoch) for name in (RESULTS, TIMINGS)))
        if hashlib.sha256(table_bytes(records.rows)).hexdigest() != results:
            raise ArtifactError(
                f"'{directory / RESULTS}' was changed since the checkpoint, so this run cannot be resumed. Put the "
                "file back, or begin a new run."
            )
        return records

    def describe(self, config: TrainConfig, session: TrainSession) -> None:
        """Write config.yaml and env.json, and cut the tables back to what is in memory.

        What a killed process left half-written goes, and so does the summary of an end that is none now.
        """
        remove_parts(self.directory)
        write_atomically(self.directory / "config.yaml", config.to_yaml().encode())
        (self.directory / _SUMMARY).unlink(missing_ok=True)
        write_atomically(self.directory / "env.json", json.dumps(_environment(session), indent=1).encode())
        if self.rows:
            self._write_tables()

    def save_epoch(
        self,
        session: TrainSession,
        position: Position,
        row: Row,
        timing: Row,
        weights: Arrays,
        confusion: Confusion | None,
    ) -> None:
        """Record a complete epoch: the weights that were evaluated, tables, checkpoint."""
        last = self.directory / "weights" / "last.safetensors"
        write_tensors(last, weights)
        if position.best_epoch == position.epoch:
            with new_file(last.with_name("best.safetensors")) as best, last.open("rb") as file:
                shutil.copyfileobj(file, best)
            if confusion is not None:
                write_atomically(self.directory / _CONFUSION, confusion.to_csv())
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
            complete = {file.name: sha256(file) for file in sorted(beside.iterdir())}
            complete[RESULTS] = hashlib.sha256(table_bytes(self.rows)).hexdigest()
            write_atomically(beside / _COMPLETE, msgspec.json.format(msgspec.json.encode(complete)))

    def finish(self, session: TrainSession, best_epoch: int) -> list[str]:
        """Write model.onnx and adapters with the best weights, and pictures where they can be.

        What is returned are sentences about what cannot be written.
        """
        best, _ = read_weights(str(self.directory / "weights" / "best.safetensors"))
        session.export_model(self.directory / "model.onnx", best)
        notes = self._write_adapter(session, best)
        if can_plot():
            write_atomically(self.directory / "curves.png", plot_curves(self.rows, best_epoch))
            self._draw_confusion(best_epoch)
        return notes

    def summarize(self, summary: Mapping[str, object]) -> None:
        """Write metrics.json; what is not a number there is null."""
        write_atomically(self.directory / _SUMMARY, json.dumps(_without_nan(summary), indent=1).encode())

    def note_memory(self, memory: Mapping[str, object]) -> None:
        """Write memory.json, which differs between equal runs."""
        write_atomically(self.directory / _MEMORY, json.dumps(memory, indent=1).encode())

    @property
    def files(self) -> tuple[str, ...]:
        """What is there, relative to the directory, checkpoints as one."""
        found = (sorted(self.directory.glob(name)) for name in _FILES)
        return tuple(str(path.relative_to(self.directory)) for paths in found for path in paths)

    def _write_adapter(self, session: TrainSession, values: Arrays) -> list[str]:
        if not session.manifest.adapters:
            return []
        try:
            lacking = session.export_adapter(self.directory / "adapter", values)
        except ProviderError as err:
            return [f"no adapter is written: {err}"]
        return [f"the adapter has no files for peft: {lacking}"] if lacking else []

    def _draw_confusion(self, best_epoch: int) -> None:
        table = self.directory / _CONFUSION
        if not table.exists():
            return
        confusion = Confusion.from_csv(table.read_bytes())
        if confusion.can_be_drawn:
            title = f"epoch {best_epoch}: {confusion.counts.sum():,} labels"
            write_atomically(table.with_suffix(".png"), confusion.to_png(title))

    def _write_tables(self) -> None:
        write_atomically(self.directory / RESULTS, table_bytes(self.rows))
        write_atomically(self.directory / TIMINGS, table_bytes(self.timings))


def read_position(directory: Path) -> Position:
    """Where the checkpoint of a run stands; ArtifactError where there is none, or it is damaged."""
    return _decoded(recover(directory / "checkpoints" / "last") / _POSITION, Position)


def _decoded(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ArtifactError(
            f"'{path.parents[2]}' holds no checkpoint to resume: there is no '{path}'. Begin a new run."
        ) from None
    except msgspec.MsgspecError as err:
        raise ArtifactError(f"'{path}' is damaged: {err}. Begin a new run.") from err


def _without_nan(value: object) -> object:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
