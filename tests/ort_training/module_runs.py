"""Run artifacts by onnxruntime-training's own Module: a script for the interpreter that has it, without onnxft.

    python -I module_runs.py ROOT

For every directory of ROOT with a `feeds.npz` of arrays `RUN/INPUT` it writes `results.npz`. A run `train...` gives
`RUN/OUTPUT` and `RUN/gradient/PARAMETER`, a run `eval...` gives `RUN/OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np

# onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
sys.modules["onnxruntime.training.optim"] = ModuleType("onnxruntime.training.optim")
from onnxruntime import SessionOptions  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module  # noqa: E402


def main(root: Path) -> None:
    assert "onnxft" not in sys.modules
    for file in sorted(root.glob("*/feeds.npz")):
        with np.load(file) as stored:
            feeds = dict(stored)
        results = runs(file.parent, feeds)
        np.savez(file.with_name("results.npz"), **results)


def runs(directory: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = CheckpointState.load_checkpoint(directory / "checkpoint")
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    training, evaluation = (directory / f"{name}_model.onnx" for name in ("training", "eval"))
    module = Module(training, state, evaluation, session_options=options)
    results: dict[str, np.ndarray] = {}
    for run in sorted({name.split("/")[0] for name in feeds}):
        module.train(run.startswith("train"))
        module.lazy_reset_grad()
        found = module(*(feeds[f"{run}/{name}"] for name in module.input_names()))
        found = found if isinstance(found, tuple) else (found,)
        results |= {f"{run}/{name}": value for name, value in zip(module.output_names(), found, strict=True)}
        if module.training:
            # A copy: `grad` is the accumulator itself.
            results |= {f"{run}/gradient/{name}": p.grad.copy() for name, p in state.parameters if p.requires_grad}
    return results


if __name__ == "__main__":
    main(Path(sys.argv[1]))
