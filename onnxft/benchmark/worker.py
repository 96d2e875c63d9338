"""The process of one side: `python -m onnxft.benchmark.worker REQUEST.json`."""

from __future__ import annotations

import platform
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import onnxft
from onnxft.benchmark.exchange import Failure, Measurement, Request, Response, read_request, write
from onnxft.runtime.engine import Array


def main(request_path: str) -> int:
    """Measure the side of the request and write the response; 0, or 1 where the response is a failure."""
    request = read_request(Path(request_path))
    try:
        measurement, gradients = _run(request)
        # safetensors writes the memory as it lies, so a transposed view must be copied first.
        save_file({name: np.array(g, order="C") for name, g in gradients.items()}, request.gradients)
    except Exception as err:
        # The edge of the process: whatever went wrong becomes the reason in the row, the traceback goes to the log.
        traceback.print_exc()
        write(Path(request.result), Response(failure=Failure(type(err).__name__, str(err))))
        return 1
    write(Path(request.result), Response(measurement=measurement))
    return 0


def _run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    # Each side imports its own packages and no others: torch in the process would count in the session's memory.
    if request.side.kind == "provider":
        from onnxft.benchmark import session_side

        measurement, gradients = session_side.run(request)
    else:
        from onnxft.benchmark import torch_baseline

        measurement, gradients = torch_baseline.run(request)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "onnxft": onnxft.__version__}
    return replace(measurement, versions=measurement.versions | versions), gradients


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
