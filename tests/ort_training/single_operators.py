"""Models of one operator for onnxruntime-training, from the cases of the native rules, and their gradients by it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxft.generators.ort_training import worker
from onnxft.graph.builder import add_input, cast_like, is_float
from onnxft.graph.constants import add_constant
from onnxft.graph.shapes import dims

sys.path.append(str(Path(__file__).parent.parent / "grad"))
import cases
from checking import Case, feeds, forward, read, torch_gradients

RELATIVE = 1e-4
RUNNING_STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that are never trained: this generator freezes them."""


@dataclass(frozen=True)
class Trial:
    """A case, and which of its inputs are trained; what is not trained is a constant, as frozen parameters are."""

    case: Case
    trained: tuple[int, ...]
    symbolic: bool = False
    """For an input with a symbolic batch, what is trained is a constant that is added to it, the same for all rows."""

    @property
    def name(self) -> str:
        of = "".join(map(str, self.trained))
        return f"{self.case.name} ({'symbolic, ' if self.symbolic else ''}trained {of})"


def trainable(case: Case) -> tuple[int, ...]:
    """The inputs that may be trained."""
    return tuple(i for i in case.differentiated() if i not in RUNNING_STATISTICS.get(case.op, ()))


def whole() -> list[Trial]:
    """Every case, all of its inputs trained."""
    return [Trial(case, trainable(case)) for case in cases.ALL]


def symbolic() -> list[Trial]:
    """The same with a symbolic batch."""
    return [Trial(case, trainable(case), symbolic=True) for case in cases.BATCHED]


def single() -> list[Trial]:
    """Every case with one trained input out of several."""
    return [Trial(c, (i,)) for c in cases.ALL if len(trainable(c)) > 1 for i in trainable(c)]


def build(trial: Trial) -> tuple[ir.Model, dict[str, int]]:
    """The model with its output `loss` = sum(y * dy), and {trained initializer: its input of the case}."""
    op, values, outputs = forward(trial.case, np.float32, symbolic=trial.symbolic)
    graph = op.builder.graph
    losses = []
    for i, y in enumerate(read(trial.case, outputs)):
        y = cast_like(op, y, next(x for x in values if is_float(x)))
        losses.append(op.ReduceSum(op.Mul(y, add_input(op, f"dy{i}", y.dtype, dims(y))), keepdims=0))
    loss = losses[0]
    for more in losses[1:]:
        loss = op.Add(loss, more)
    loss.name = "loss"
    graph.outputs.append(loss)
    trained = {}
    for i in trial.case.differentiated():
        x, array = values[i], trial.case.values[i].astype(values[i].dtype.numpy())
        if not trial.symbolic or i not in {*trial.case.batch, *trial.case.named}:
            graph.inputs.remove(x)
            x.const_value = ir.tensor(array)
            graph.register_initializer(x)
            trained |= {x.name: i} if i in trial.trained else {}
        elif i in trial.trained:
            sizes = [1 if isinstance(d, str) else d for d in dims(x)]  # so that the sum has the symbolic sizes of x
            added = add_constant(graph, f"added_{x.name}", ir.tensor(np.zeros(sizes, array.dtype)))
            total = ir.Node("", "Add", [x, added], name=f"add_{x.name}")
            total.outputs[0].name, total.outputs[0].type, total.outputs[0].shape = f"with_{x.name}", x.type, x.shape
            x.replace_all_uses_with(total.outputs[0])
            total.replace_input_with(0, x)
            graph.insert_before(graph[0], total)
            trained[added.name] = i
    return ir.Model(graph, ir_version=9), trained


def run(python: str, folder: Path, models: Sequence[tuple[Trial, ir.Model, dict[str, int]]]) -> list[str]:
    """What is wrong with the gradients of each model, one process for all; a crash costs a start."""
    for k, (trial, model, _) in enumerate(models):
        ir.save(model, folder / f"{k}.onnx")
        np.savez(folder / f"{k}.npz", **feeds(trial.case, np.float32))
    (folder / "models.json").write_text(json.dumps([list(trained) for *_, trained in models]))
    script, first, crashed = Path(__file__).with_name("many_models.py"), 0, set()
    while first < len(models):
        command = [python, "-I", str(script), worker.__file__, str(folder), str(first)]
        status = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        started = int((folder / "started").read_text()) if (folder / "started").exists() else -1
        if status.returncode == 0:
            break
        assert started >= first, status.stderr
        crashed.add(started)
        first = started + 1
    return [
        "crash" if k in crashed else _judge(trial, trained, folder, k) for k, (trial, _, trained) in enumerate(models)
    ]


def _judge(trial: Trial, trained: dict[str, int], folder: Path, k: int) -> str:
    """How the gradients of model k differ from torch's in float64; empty where they do not."""
    error = folder / f"{k}.error"
    if error.exists():
        return f"error: {error.read_text()}"
    expected = torch_gradients(trial.case)  # 0 to a negative power has an infinite one
    with np.load(folder / f"{k}.gradients.npz") as found:
        for name, i in trained.items():
            wanted = expected[i]
            if name.startswith("added_"):
                axes = {0, *trial.case.named.get(i, {})} if i in trial.case.batch else set(trial.case.named[i])
                wanted = wanted.sum(tuple(axes), keepdims=True)
            if found[name].shape != wanted.shape:
                return f"input {i}: shape {found[name].shape} for {wanted.shape}"
            scale = max(float(np.abs(expected[i][np.isfinite(expected[i])]).max(initial=0.0)), 1e-3)
            if not np.allclose(found[name], wanted, rtol=RELATIVE, atol=RELATIVE * scale):
                return f"input {i}: off by {np.abs(found[name] - wanted).max() / scale:.1e}"
    return ""
