"""Starting the worker of the ort-training generator, and what its answers mean."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxft.errors import GradientError, ProviderError
from onnxft.generators.ort_training import worker
from onnxft.graph.io import save_inference
from onnxft.ort_training_environment import how_to_make


@dataclass(frozen=True)
class Answer:
    """What the worker says of the files that it wrote."""

    versions: dict[str, str]
    """{package: version} of its environment."""
    parameters: list[str]
    """Trained and frozen parameters, in the order that they have as inputs of the training graph."""


def run_worker(python: str, model: ir.Model, request: Mapping[str, Any], folder: Path) -> Answer:
    """Let the worker write training and optimizer model and both checkpoints into `folder`.

    Args:
        python: interpreter of its environment.
        model: the lowered model with its loss as the first output.
        request: as in `worker.generate`, without paths.
        folder: of the artifact under construction.

    Raises:
        ProviderError: the environment lacks something, or the worker crashed.
        GradientError: the package refuses the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        names = ("forward.onnx", "request.json", "answer.json")
        forward_file, request_file, answer_file = (Path(scratch) / name for name in names)
        save_inference(model, forward_file)
        full = {**request, "model": str(forward_file), "directory": str(folder.resolve())}
        request_file.write_text(json.dumps(full), encoding="utf-8")
        # Isolated (-I), so that packages on this environment's PYTHONPATH do not reach the other. In the scratch
        # directory, because the package puts a `temp.onnx` into the working directory, over anybody's file.
        done = subprocess.run(
            [str(Path(python).absolute()), "-I", worker.__file__, str(request_file), str(answer_file)],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not answer_file.is_file():
            raise ProviderError(_crash(python, done.returncode, done.stderr))
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    match answer.get("error"):
        case "environment":
            raise ProviderError(f"'{python}' cannot generate: {answer['reason']}. {how_to_make()}")
        case "generation":
            raise GradientError(_explain(answer["reason"]))
    return Answer(answer["versions"], answer["parameters"])


def _crash(python: str, status: int, stderr: str) -> str:
    who = f"the worker of the ort-training generator ('{python}')"
    if status < 0:
        return (
            f"{who} was ended by {signal.Signals(-status).name}, a crash inside onnxruntime-training. "
            "Freeze more of the model, or use the native generator."
        )
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return f"{who} failed with status {status}: {last}. {how_to_make()}"


def _explain(reason: str) -> str:
    """One sentence for what onnxruntime-training said, without its C++ source lines, and the ways out."""
    ways_out = "Freeze what lies before it, or use the native generator."
    missing = re.search(r"gradient builder has not been registered: (\S+)(?: for node (\S*))?", reason)
    if missing:
        op_type, node = missing.group(1), missing.group(2) or ""
        return f"onnxruntime-training has no gradient for '{op_type}' (node '{node}'). {ways_out}"
    if re.search(r"(Input|Output)Defs\(\)\.size\(\) was false", reason):
        said = "a node lacks an optional input or output that its gradient builder reads"
    else:
        said = re.split(r" was false\. |\] ", reason.strip().splitlines()[0])[-1].strip().rstrip(".")
    return f"onnxruntime-training cannot differentiate the model: {said}. {ways_out}"
