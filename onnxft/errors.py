"""Every error a user can meet, each with the exit code its command ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path


class ExitStatus(IntEnum):
    """Exit codes of the command line (documented in README.md)."""

    OK = 0
    INTERNAL = 1
    """Something that is a defect of onnxft: please report it with the traceback."""
    USAGE = 2
    """The command line itself: unknown option, missing argument (click's own code)."""
    MODEL = 3
    """The model cannot be loaded, exported or matched with what was exported."""
    GRADIENT = 4
    """The model cannot be differentiated along the chosen path."""
    PROVIDER = 5
    """The execution provider that was asked for cannot run here."""
    DATA = 6
    """The data set or a batch does not fit the model."""
    ARTIFACT = 7
    """An artifact, checkpoint or weights file is missing, damaged or of another kind."""
    DIVERGED = 8
    """The loss is not finite; nothing was saved after the last good step."""
    CONFIG = 9
    """A configuration value is unknown or contradicts another."""
    SLOWER = 10
    """`onnxft bench --fail-under`: a side is slower than was asked for."""
    WRITE = 11
    """A file cannot be written: the disk is full, or writing is not permitted."""
    INTERRUPTED = 130
    """Ended by Ctrl-C, after the step in progress."""


class OnnxftError(Exception):
    """Base of all errors that name a thing, a reason and a next step."""

    exit_status = ExitStatus.INTERNAL
    told: bool | None = None
    """Whether another process of the run shows it; None: it is not one with which several processes end."""


class ModelError(OnnxftError):
    """The model cannot be loaded, exported or matched with what was exported."""

    exit_status = ExitStatus.MODEL


class SelectionError(ModelError):
    """A pattern selects no parameter, or the selection leaves nothing to train."""


class GradientError(OnnxftError):
    """The graph cannot be differentiated along the path from parameters to loss."""

    exit_status = ExitStatus.GRADIENT


class ProviderError(OnnxftError):
    """The provider that was asked for is absent, broken, or not what would run."""

    exit_status = ExitStatus.PROVIDER


class DataError(OnnxftError):
    """A data set or a batch does not fit the model."""

    exit_status = ExitStatus.DATA


class ArtifactError(OnnxftError):
    """An artifact, checkpoint or weights file is missing, damaged or of another kind."""

    exit_status = ExitStatus.ARTIFACT


class DivergedError(OnnxftError):
    """The loss is not finite."""

    exit_status = ExitStatus.DIVERGED


class ConfigError(OnnxftError):
    """A configuration value is unknown or contradicts another."""

    exit_status = ExitStatus.CONFIG


class WriteError(OnnxftError):
    """A file cannot be written: the disk is full, or writing is not permitted."""

    exit_status = ExitStatus.WRITE

    def __init__(self, path: Path, reason: str, whole: str) -> None:
        """Name the file, what the system says, and what is still whole."""
        super().__init__(f"'{path}' cannot be written: {reason}. {whole}")
        self.path, self.reason, self.whole = path, reason, whole


class SlowerError(OnnxftError):
    """A side of a benchmark is slower than was asked for."""

    exit_status = ExitStatus.SLOWER


def near(name: str, known: Iterable[str]) -> str:
    """A clause for the end of a message: the nearest known names, or all of a short list.

    >>> near("opnvino", ["cpu", "openvino"])
    " Did you mean 'openvino'?"
    >>> near("gpu", ["adamw", "sgd"])
    " Known: 'adamw', 'sgd'."
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(n) for n in close)}?"
    if 0 < len(names) <= 12:
        return f" Known: {', '.join(repr(n) for n in names)}."
    return ""
