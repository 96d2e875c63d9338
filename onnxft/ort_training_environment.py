"""The environment of onnxruntime-training 1.19.2, which cannot live beside a current onnxruntime.

`onnxft setup ort-training` makes it (`onnxft/runtime/ort_training/setup.py`); here is where it lies and what it holds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from onnxft.errors import ProviderError

PYTHON_VARIABLE = "ONNXFT_ORT_TRAINING_PYTHON"
COMMAND = "onnxft setup ort-training"
RECORD = "onnxft-environment.json"
"""The file that marks an environment as made by the command, and says whether it is complete."""
_DISTRIBUTIONS = ("onnxruntime-training-cpu", "onnxruntime-training")
_ONNX = "onnx>=1.16,<1.18"
"""1.18 and newer stamp an IR version on the optimizer model that onnxruntime-training 1.19.2 cannot read."""


def requirements(*, cuda: bool = False) -> tuple[str, ...]:
    """What is installed in it; the CUDA package is built for CUDA 11.8."""
    return (f"{_DISTRIBUTIONS[1 if cuda else 0]}==1.19.2", _ONNX)


def base_versions(*, cuda: bool = False) -> tuple[tuple[int, int], ...]:
    """Versions of Python that its packages are built for."""
    return ((3, 11),) if cuda else ((3, 11), (3, 12))


def default_place() -> Path:
    """Where the command makes it unless told otherwise: among the data of this user."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "onnxft" / "ort-training"


def interpreter_of(place: Path) -> Path:
    """The interpreter of a virtual environment."""
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def read_record(place: Path) -> dict[str, Any] | None:
    """What the command wrote about an environment; None where it made none there."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def find_python(python: str | None = None) -> str:
    """The interpreter of the environment with onnxruntime-training; ProviderError says how to make one.

    `python` comes first, then the environment variable ONNXFT_ORT_TRAINING_PYTHON, then this interpreter where the
    package is installed, then the default place of the command.
    """
    for source, wanted in (("--python", python), (PYTHON_VARIABLE, os.environ.get(PYTHON_VARIABLE))):
        if wanted:
            found = shutil.which(wanted)
            if found is None:
                raise ProviderError(f"there is no executable '{wanted}' ({source}). {how_to_make()}")
            return found
    if any(_installed(name) for name in _DISTRIBUTIONS):
        return sys.executable
    place = default_place()
    if (read_record(place) or {}).get("complete"):
        return str(interpreter_of(place))
    raise ProviderError(
        "the ort-training generator needs onnxruntime-training, which cannot live beside a current onnxruntime, and "
        f"there is no environment for it at '{place}'. {how_to_make()}"
    )


def how_to_make() -> str:
    """What to do where there is none."""
    return f"Make its environment with `{COMMAND}`, or name one that has it in {PYTHON_VARIABLE}."


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
