"""One side of a benchmark in a process of its own: a request goes in, an outcome comes back whatever happens there."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from onnxft.benchmark.config import ORT_TRAINING, BenchConfig, Side
from onnxft.benchmark.environment import thread_variables
from onnxft.benchmark.exchange import Measurement, Request, Response, read_response, write
from onnxft.ort_training_environment import PYTHON_VARIABLE
from onnxft.runtime.isolate import last_line, run_isolated


@dataclass(frozen=True)
class Outcome:
    """A measurement, or the reason why there is none."""

    measurement: Measurement | None = None
    reason: str | None = None
    log: Path | None = None
    """What the failed process printed."""


def run_side(request: Request, place: Path, artifacts: dict[int, Path | Outcome]) -> Outcome:
    """Measure one side.

    Args:
        request: what to measure.
        place: an empty folder.
        artifacts: {batch size: artifact of onnxruntime-training, or why there is none}; made when first needed.
    """
    if request.side.runs == ORT_TRAINING:
        made = artifacts.get(request.batch_size)
        if made is None:
            made = artifacts[request.batch_size] = _generate(request, place)
        if isinstance(made, Outcome):
            return made
        request = replace(request, artifact=str(made))
    own = None if request.side.runs == ORT_TRAINING else request.config.interpreter(request.side)
    python = own or sys.executable
    log = place / "output.log"
    response, ended = _run(request, python, place, log)
    if ended is None and response is not None and response.measurement is not None:
        if response.measurement.gradients_error is not None:
            return Outcome(response.measurement)
        try:
            with safe_open(request.gradients, "numpy"):
                return Outcome(response.measurement)
        except (OSError, SafetensorError) as err:
            ended = f"the file of its gradients cannot be read ({err})"
    return Outcome(reason=_reason(response, ended, request, log), log=log)


def _generate(request: Request, place: Path) -> Path | Outcome:
    """The artifact of onnxruntime-training, made from the source."""
    artifact, log = place / ORT_TRAINING, place / "generate.log"
    request = replace(request, generate=str(artifact))
    response, ended = _run(request, sys.executable, place, log)
    if ended is None and artifact.is_dir():
        return artifact
    return Outcome(reason=_reason(response, ended, request, log), log=log)


def _run(request: Request, python: str, place: Path, log: Path) -> tuple[Response | None, str | None]:
    """What the process wrote, and how it failed if it did."""
    file = place / "request.json"
    write(file, request)
    # A compiled kernel of another side or run would take the compile time out of the first step.
    variables = thread_variables(request.threads) | {
        name: str(place.parent / "compiled") for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    }
    if request.side.runs == ORT_TRAINING and (there := request.config.interpreter(request.side)):
        variables[PYTHON_VARIABLE] = there  # of its worker processes; the side itself runs here
    # -P: a file in the working directory must not stand in for a package.
    command = [python, "-P", "-m", "onnxft.benchmark.worker", str(file)]
    ended = run_isolated(command, log, request.config.time_limit_seconds, variables)
    return read_response(Path(request.result)), ended


def _reason(response: Response | None, ended: str | None, request: Request, log: Path) -> str:
    if response is not None and response.failure is not None:
        return f"{response.failure.kind}: {response.failure.message}"
    return _crash_reason(ended or "the process wrote no readable result", request.side, request.config, last_line(log))


def _crash_reason(ended: str, side: Side, config: BenchConfig, output: str) -> str:
    reason = f"{ended}; its last output: {output}" if output else ended
    python = config.interpreter(side)
    if python is not None and "cannot be started" in ended:
        reason += f". Give the interpreter of an environment as --python {side.runs}=PATH"
    if python is not None and "No module named 'onnxft" in output:
        reason += f". Install onnxft in that environment: {python} -m pip install onnxft"
    return reason
