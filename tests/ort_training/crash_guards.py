"""Crashes and unreadable errors of onnxruntime-training 1.19.2, each with the guard against it."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from guarding import ROWS, Guard, assert_trains_as_torch, export, make_batches, nothing, replaced
from torch import nn

from onnxft.api import plan
from onnxft.errors import ArtifactError, SelectionError
from onnxft.generators.ort_training import generate, worker
from onnxft.manifest_file import read_manifest
from onnxft.runtime.ort_training import engine
from onnxft.runtime.ort_training import worker as engine_worker
from onnxft.runtime.session import TrainSession

LOWER = importlib.import_module("onnxft.generators.ort_training.lowering.lower")


# ----- L1: files that its own runtime refuses -----


def an_onnx_too_new_is_refused_before_the_work(folder: Path) -> None:
    artifact = export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), folder / "a")
    for name in ("training_model", "eval_model", "optimizer_model"):
        model = onnx.load(artifact / f"{name}.onnx")
        opset = next(o.version for o in model.opset_import if o.domain == "")
        assert (model.ir_version <= 10, opset <= 21) == (True, True), name
    with pytest.MonkeyPatch.context() as patch:
        for name in ("training", "training.artifacts", "training.onnxblock"):
            patch.setitem(sys.modules, f"onnxruntime.{name}", ModuleType(name))
        patch.setattr(onnx, "IR_VERSION", 11)
        with pytest.raises(worker.EnvironmentFaultError, match=r"stamps IR version 11.*onnx<1\.18"):
            worker.generate({})


# ----- L2: outputs that are left out -----


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.inner(input))))


def a_layer_norm_with_one_output_trains(folder: Path) -> None:
    x = torch.zeros(ROWS, 4)
    artifact, module = export(Transformer(), x, folder / "a"), Transformer()
    assert_trains_as_torch(artifact, module, make_batches(x, 3), torch.optim.SGD(module.parameters(), 0.2), 0.2)


# ----- L3: crashes and traces instead of errors -----


def a_missing_evaluation_graph_is_named(folder: Path) -> None:
    artifact = export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), folder / "a")
    (artifact / "eval_model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"eval_model\.onnx' is missing"):
        engine.OrtTrainingEngine(artifact, read_manifest(artifact))


def an_evaluation_is_no_crash(folder: Path) -> None:
    artifact = export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), folder / "a")
    with TrainSession(artifact, threads=1) as session:
        assert np.isfinite(session.evaluate(make_batches(torch.zeros(1, 4), 3)[0]).loss)


def evaluation_without_its_graph(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The worker with a Module that was given none: `eval()` and a call end its process."""
    own = Path(engine_worker.__file__)
    folder = shutil.copytree(own.parent, folder / "workers")
    line = "        return {}, self._run(arrays, outputs, training=False)\n"
    crash = (
        '        module = self._api.Module(self._files["training"], self._state, None)\n'
        "        module.eval()\n"
        "        return {}, module(*arrays.values())\n"
    )
    text = own.read_text()
    assert line in text
    (folder / own.name).write_text(text.replace(line, crash))
    patch.setattr(engine_worker, "__file__", str(folder / own.name))


def nothing_to_train_is_named(folder: Path) -> None:
    with pytest.raises(SelectionError, match="no parameter is selected"):
        generate_trainable(folder, ())


def a_typo_is_named(folder: Path) -> None:
    with pytest.raises(SelectionError, match=r"'0\.weigth' is no parameter of the exported graph.*'0\.weight'"):
        generate_trainable(folder, ("0.weigth",))


def generate_trainable(folder: Path, trainable: tuple[str, ...]) -> None:
    """Past the patterns of `onnxft export`, which find most of it before."""
    made = plan(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), optimizer="sgd")
    chosen = replace(made.selection, trainable=trainable, groups=dict.fromkeys(trainable, "default"))
    generate.generate(made.forward, chosen, made.loss, made.optimizer, folder / "a", batch_size=ROWS)


def a_folder_is_made(folder: Path) -> None:
    artifact = export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), folder / "not" / "there" / "yet")
    assert (artifact / "manifest.json").is_file()


GUARDS = [
    Guard(
        "L1",
        an_onnx_too_new_is_refused_before_the_work,
        replaced(worker, "MAX_IR_VERSION", 99),
        "has no attribute 'training'",
    ),
    Guard(
        "L2",
        a_layer_norm_with_one_output_trains,
        replaced(LOWER, "add_missing_outputs", nothing),
        "a node lacks an optional input or output",
    ),
    Guard(
        "L3 missing graph",
        a_missing_evaluation_graph_is_named,
        replaced(engine, "_existing", lambda directory, *_: directory / "none"),
        "cannot open the artifact 'a'",
    ),
    Guard(
        "L3 segmentation fault",
        an_evaluation_is_no_crash,
        evaluation_without_its_graph,
        "ended by SIGSEGV in 'evaluate'",
    ),
    Guard(
        "L3 nothing trained",
        nothing_to_train_is_named,
        replaced(LOWER, "check_trainable", nothing),
        "IndexError: list index out of range",
    ),
    Guard("L3 typo", a_typo_is_named, replaced(LOWER, "check_trainable", nothing), "did not match"),
    Guard(
        "L3 folder",
        a_folder_is_made,
        replaced(generate, "new_directory", contextlib.nullcontext),
        "No such file or directory",
    ),
]
