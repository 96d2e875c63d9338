"""The process of one side: `python -m onnxft.benchmark.worker REQUEST.json`."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import onnxft
from onnxft.arrays import Array
from onnxft.benchmark.config import ORT_TRAINING
from onnxft.benchmark.environment import package_versions
from onnxft.benchmark.exchange import Failure, Measurement, Request, Response, read_request, write
from onnxft.errors import OnnxftError, ProviderError
from onnxft.runtime.denormals import denormals_as_zero
from onnxft.runtime.providers import first_line


def main(request_path: str) -> int:
    """Measure the side of the request and write the response; 0, or 1 where the response is a failure."""
    request = read_request(Path(request_path))
    try:
        if request.generate is not None:
            _generate(request, Path(request.generate))
            return 0
        measurement, arrays = _run(request)
        # safetensors writes the memory as it lies, so a transposed view must be copied first.
        save_file({name: np.array(a, order="C") for name, a in arrays.items()}, request.gradients)
    except Exception as err:
        # The edge of the process: whatever went wrong becomes the reason in the row, the traceback goes to the log.
        traceback.print_exc()
        write(Path(request.result), Response(failure=_failure(err)))
        return 1
    write(Path(request.result), Response(measurement=measurement))
    return 0


def _run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    # Each side imports its own packages and no others: torch in the process would count in the session's memory.
    if request.side.kind == "provider" or request.side.runs == ORT_TRAINING:
        from onnxft.benchmark import session_side

        with denormals_as_zero():  # as `onnxft train`
            measurement, arrays = session_side.run(request)
    else:
        with _torch_explained(request):
            from onnxft.benchmark import torch_baseline
        measurement, arrays = torch_baseline.run(request)
    versions = {"python": platform.python_version(), "onnxft": onnxft.__version__} | package_versions()
    return replace(measurement, versions=measurement.versions | versions), arrays


def _generate(request: Request, directory: Path) -> None:
    with _torch_explained(request):
        from onnxft.benchmark import ort_training_baseline
    ort_training_baseline.generate(request, directory)


@contextmanager
def _torch_explained(request: Request) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name != "torch":
            raise
        elsewhere = "" if request.generate else f", or name one that has it with --python {request.side.runs}=PATH"
        raise ProviderError(
            f"the baseline '{request.side.name}' needs PyTorch, which is not installed here. Install it in this "
            f"environment with `pip install 'onnxft[export]'`{elsewhere}."
        ) from err


def _failure(err: Exception) -> Failure:
    if isinstance(err, MemoryError):
        return Failure("MemoryError", f"{str(err) or 'out of memory'}. Benchmark a smaller batch.")
    # Only onnxft's own messages are known to be sentences; of others the rest is in the log.
    if isinstance(err, OnnxftError):
        return Failure(_public(type(err)).__name__, " ".join(str(err).split()))
    return Failure(type(err).__name__, first_line(err))


def _public(error: type[OnnxftError]) -> type[OnnxftError]:
    """The class that users know, of those that `error` is."""
    return next(kind for kind in error.__mro__ if kind.__module__ == OnnxftError.__module__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
