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

import csv
import hashlib
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from onnxft import __version__
from onnxft.errors import ArtifactError, ConfigError, OnnxftError, ProviderError, WriteError
from onnxft.files import is_part, new_directory, new_file, recover, remove_parts, sha256, write_atomically
from onnxft.runtime.engine import Arrays
from onnxft.runtime.session import TrainSession
from onnxft.tensor_file import write_tensors
from onnxft.training.config import TrainConfig
from onnxft.training.confusion import Confusion
from onnxft.training.curves import can_plot, plot_curves
from onnxft.training.position import Position
from onnxft.training.warm_start import read_weights
from onnxft.yaml_file import read_yaml

Row = dict[str, float]
T = TypeVar("T")
_POSITION = "loop.json"
_SUMMARY = "metrics.json"
_MEMORY = "memory.json"
_CONFUSION = "confusion_matrix.csv"
_COMPLETE = "complete.json"
"""{file of the checkpoint: its SHA-256}, written last: without it a checkpoint is not complete.

That of results.csv is of the rows that were there: after a crash the file may have one more.
"""
_RESULTS, _TIMINGS = "results.csv", "timings.csv"
_FILES = (
    "model.onnx", "adapter/*", "weights/best.safetensors", "weights/last.safetensors", _SUMMARY, _MEMORY, _RESULTS,
    _TIMINGS, "curves.png", _CONFUSION, "confusion_matrix.png", "train.log", "events.out.tfevents.*", "config.yaml",
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
        results = complete.pop(_RESULTS, None)
        # What is there without a digest was put there by somebody else.
        for name in sorted({*complete, *(file.name for file in place.iterdir())} - {_COMPLETE}):
            if not (place / name).is_file() or sha256(place / name) != complete.get(name):
                raise ArtifactError(
                    f"'{place / name}' is missing, damaged or of another moment than the rest of the checkpoint, so "
                    "this run cannot be resumed. Begin a new run, from its weights if you like: --weights "
                    f"{directory / 'weights' / 'last.safetensors'}."
                )
        session.load_checkpoint(place)
        records = cls(directory, *(_read(directory / name, position.epoch) for name in (_RESULTS, _TIMINGS)))
        if hashlib.sha256(_table(records.rows)).hexdigest() != results:
            raise ArtifactError(
                f"'{directory / _RESULTS}' was changed since the checkpoint, so this run cannot be resumed. Put the "
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
            complete[_RESULTS] = hashlib.sha256(_table(self.rows)).hexdigest()
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
        write_atomically(self.directory / _RESULTS, _table(self.rows))
        write_atomically(self.directory / _TIMINGS, _table(self.timings))


@contextmanager
def keeping(directory: Path) -> Iterator[None]:
    """A WriteError of the block says how the run goes on; a run that has saved nothing yet leaves nothing behind.

    So what is found wrong before the first step, in the data that is evaluated too, has cost no directory.
    """
    existed = directory.exists()
    missing = [folder for folder in directory.parents if not folder.exists()]
    try:
        yield
    except BaseException as err:
        place = recover(directory / "checkpoints" / "last")
        if not existed and not place.exists() and isinstance(err, OnnxftError):
            shutil.rmtree(directory, ignore_errors=True)
            for folder in missing:
                with suppress(OSError):  # what another run has begun to fill stays
                    folder.rmdir()
        if not isinstance(err, WriteError):
            raise
        whole = f"The checkpoint '{place}' is whole" if place.exists() else "Nothing was trained yet"
        go_on = f"go on with --resume --run {directory}" if place.exists() else "begin again"
        raise WriteError(err.path, err.reason, f"{whole}: make room, then {go_on}.") from err


def saved_config(directory: Path) -> TrainConfig:
    """The configuration that a run was begun with; ArtifactError where there is no run."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise ArtifactError(f"there is no run to resume in '{directory}'. Leave --resume out to begin one.")
    return TrainConfig.from_mapping(read_yaml(path), f"'{path}'")


def read_position(directory: Path) -> Position:
    """Where the checkpoint of a run stands; ArtifactError where there is none, or it is damaged."""
    return _decoded(recover(directory / "checkpoints" / "last") / _POSITION, Position)


def is_blank(directory: Path) -> bool:
    """Whether a run was killed before its first checkpoint, so that nothing is lost when it begins once more."""
    results = directory / _RESULTS
    lines = results.read_bytes().count(b"\n") if results.exists() else 0
    return not recover(directory / "checkpoints" / "last").exists() and lines <= 2


def require_new(directory: Path) -> None:
    """ConfigError if anything is in the directory, but for what was killed before it was written."""
    if directory.exists() and (not directory.is_dir() or any(not is_part(entry) for entry in directory.iterdir())):
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


def _decoded(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ArtifactError(
            f"'{path.parents[2]}' holds no checkpoint to resume: there is no '{path}'. Begin a new run."
        ) from None
    except msgspec.MsgspecError as err:
        raise ArtifactError(f"'{path}' is damaged: {err}. Begin a new run.") from err


def _table(rows: Sequence[Mapping[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else repr(v) for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def _read(path: Path, last_epoch: int) -> list[Row]:
    """The rows of a table for the epochs from 0 to the last; ArtifactError where they are not there."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]
        kept = [row for row in rows if row["epoch"] <= last_epoch]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as err:
        raise ArtifactError(f"'{path}' is missing or damaged ({err!r}), so this run cannot be resumed.") from err
    if [row["epoch"] for row in kept] != list(range(last_epoch + 1)):
        raise ArtifactError(
            f"'{path}' has not one row for each epoch from 0 to {last_epoch}, so this run cannot be resumed."
        )
    return kept


def _number(text: str) -> float:
    if not text:
        return math.nan
    return int(text) if text.isdecimal() else float(text)


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
