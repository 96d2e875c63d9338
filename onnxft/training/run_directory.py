"""Where a run lies: a new directory, or that of a run to go on with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxft.errors import ArtifactError, ConfigError, OnnxftError, WriteError
from onnxft.files import is_part, recover
from onnxft.training.config import TrainConfig
from onnxft.training.result_tables import RESULTS
from onnxft.yaml_file import read_yaml


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


def is_blank(directory: Path) -> bool:
    """Whether a run was killed before its first checkpoint, so that nothing is lost when it begins once more."""
    results = directory / RESULTS
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
