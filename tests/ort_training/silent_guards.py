"""Wrong numbers without an error, of onnxruntime-training 1.19.2 and of tracing, each with the guard against it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarding import ROWS, Guard, assert_trains_as_torch, export, make_batches, nothing, replaced
from torch import nn

from onnxft.errors import DataError
from onnxft.generators.ort_training import generate, worker
from onnxft.runtime import batches
from onnxft.runtime.session import TrainSession
from onnxft.training.loop import run
from onnxft.training.plan import Plan
from onnxft.training.progress import Progress

LOWER = importlib.import_module("onnxft.generators.ort_training.lowering.lower")


# ----- S4: equal initializers become one -----


class Normed(nn.Sequential):
    """Fresh: weight and running variance are 1 alike, bias and running mean 0."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))


PICTURES = torch.zeros(ROWS, 2, 5, 5)


def fresh_statistics_stay_apart(folder: Path) -> None:
    """Where tracing exports, which torch.export's failure leads to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxft.exporters.pytorch._torch_export", refuse)
        artifact = export(Normed(), PICTURES, folder / "a", trainable=["1.*", "4.*"])
    module = Normed().eval()
    data = make_batches(PICTURES, 3)
    trained = [*module[1].parameters(), *module[4].parameters()]
    assert_trains_as_torch(artifact, module, data, torch.optim.SGD(trained, 0.5), 0.5)


def refuse(*_: object) -> None:
    raise RuntimeError("not today")


def as_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    """Tracing by the mode of the module itself: torch merges equal initializers then."""
    mode = property(lambda self: False, lambda self, value: None)
    patch.setattr("onnxft.exporters.legacy._Flat.training", mode, raising=False)


# ----- S5: the package's schedule swaps its arguments -----


class Constant(nn.Module):
    """Far below its labels, so that with an L1 loss the gradient of `bias` is -1 in every update."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + self.bias


WARMUP, UPDATES, RATE = 2, 10, 0.5
EXPECTED = [1 / 3, 2 / 3, *(1 - t / 8 for t in range(8))]
"""Two updates of warm-up, then down to 0: LinearLR and its successor in torch.optim.lr_scheduler.SequentialLR."""


class Rates(Progress):
    """What every update did to `bias`."""

    def __init__(self) -> None:
        self.session: TrainSession | None = None
        self.values: list[float] = []

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        assert self.session is not None
        self.values.append(float(self.session.parameters["bias"][0]))


def every_update_has_its_rate(folder: Path) -> None:
    artifact = export(Constant(), torch.zeros(ROWS, 1), folder / "a", loss="l1")
    rows = {"input": np.zeros((UPDATES * ROWS, 1), np.float32), "labels": np.full((UPDATES * ROWS, 1), 99, np.float32)}
    progress = Rates()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxft.training.loop.Plan.make", observed(progress))
        options = {"epochs": 1, "lr": RATE, "schedule": "linear", "warmup": WARMUP / UPDATES, "threads": 1}
        run(artifact, rows, options, run_dir=folder / "run", progress=progress)
    moved = np.diff([0.0, *progress.values])
    np.testing.assert_allclose(moved, RATE * np.array(EXPECTED), rtol=1e-4, atol=1e-6)


def observed(progress: Rates) -> Callable[..., object]:
    make = Plan.make

    def wrapped(session: TrainSession, *arguments: Any) -> Plan:
        progress.session = session
        return make(session, *arguments)

    return wrapped


def set_by_the_package(patch: pytest.MonkeyPatch) -> None:
    """The rates of LinearLRScheduler(warmup, total): those of total and warmup exchanged."""

    def swapped(t: int, total: int) -> float:
        return t / total if t < total else 0.0

    patch.setattr("onnxft.training.plan.factor", lambda schedule, t, T, warmup, **_: swapped(t + 1, T))


# ----- S6: frozen BatchNorm trains on batch statistics and moves the running ones -----


class Worn(Normed):
    """With statistics as after training."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for values in (self[1].weight, self[1].running_var):
                values.uniform_(0.5, 1.5)
            for values in (self[1].bias, self[1].running_mean):
                values.normal_()


def frozen_batch_norm_stays_frozen(trained: tuple[int, ...], folder: Path) -> None:
    """Layers of `Worn` that are trained; on the path of gradients from the first one lies the normalisation."""
    patterns = [f"{layer}.*" for layer in trained]
    artifact, data = export(Worn(), PICTURES, folder / "a", trainable=patterns), make_batches(PICTURES, 3)
    module = Worn().eval()
    parameters = [p for layer in trained for p in module[layer].parameters()]
    assert_trains_as_torch(artifact, module, data, torch.optim.SGD(parameters, 0.1), 0.1)
    with TrainSession(artifact, threads=1) as session:
        for batch in data:
            session.step(batch, lr=0.1)
        # On batch statistics the loss of a row would depend on the other rows.
        rows = [session.evaluate({n: a[i : i + 1] for n, a in data[0].items()}).loss for i in range(ROWS)]
        assert session.accumulate(data[0]).loss == pytest.approx(np.mean(rows), rel=1e-4), "batch statistics"
        outputs = session.predict({"input": data[0]["input"]})["output"]
        with torch.no_grad():
            expected = module(torch.from_numpy(data[0]["input"])).numpy()
        np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4, err_msg="running statistics")


# ----- S7: labels outside the classes -----


def labels_outside_the_classes_are_an_error(folder: Path) -> None:
    artifact = export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(ROWS, 4), folder / "a", standalone=True)
    with TrainSession(artifact, threads=1) as session:
        for label in (-1, 3):
            batch = make_batches(torch.zeros(1, 4), 3)[0]
            batch["labels"][2] = label
            with pytest.raises(DataError, match=rf"'labels' has the value {label} at row 2; classes are 0 to 2"):
                session.step(batch, lr=0.1)


# ----- torch's defaults, and torch's AdamW -----


def adamw_has_the_numbers_of_torch(folder: Path) -> None:
    x = torch.zeros(ROWS, 4)
    module = nn.Sequential(nn.Linear(4, 3))
    artifact = export(module, x, folder / "a", optimizer="adamw")
    data = make_batches(x, 3)
    for batch in data:  # so small that the gradients of the weights are near eps, where it shows
        batch["input"] *= 1e-7
    lr = 0.1  # the decay of 0.01 moves a weight by a thousandth in an update
    assert_trains_as_torch(artifact, module, data, torch.optim.AdamW(module.parameters(), lr), lr)


def defaults_of_the_package(patch: pytest.MonkeyPatch) -> None:
    own = {"kind": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01, "max_norm": None}
    patch.setattr(generate, "optimizer_settings", lambda *_: own)


def decay_of_the_package(patch: pytest.MonkeyPatch) -> None:
    own = {"kind": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "max_norm": None}
    patch.setattr(generate, "optimizer_settings", lambda *_: own)


def adamw_of_the_package(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The worker without the line that sets the mode: the Hugging Face variant."""
    own = Path(worker.__file__).read_text()
    changed = re.sub(r"\n    _use_torch_adamw\(.*\n", "\n", own)
    assert changed != own
    (folder / "worker.py").write_text(changed)
    patch.setattr(worker, "__file__", str(folder / "worker.py"))


GUARDS = [
    Guard("S4", fresh_statistics_stay_apart, lambda patch, folder: as_in_evaluation(patch), "is not as torch has it"),
    Guard("S5", every_update_has_its_rate, lambda patch, folder: set_by_the_package(patch), "Not equal to tolerance"),
    Guard(
        "S6",
        partial(frozen_batch_norm_stays_frozen, (4,)),
        replaced(LOWER, "decompose_batch_norm", nothing),
        "is not as torch has it",
    ),
    Guard("S7", labels_outside_the_classes_are_an_error, replaced(batches, "check_labels", nothing), "DID NOT RAISE"),
    Guard(
        "eps",
        adamw_has_the_numbers_of_torch,
        lambda patch, folder: defaults_of_the_package(patch),
        "is not as torch has it",
    ),
    Guard(
        "decay",
        adamw_has_the_numbers_of_torch,
        lambda patch, folder: decay_of_the_package(patch),
        "is not as torch has it",
    ),
    Guard("mode", adamw_has_the_numbers_of_torch, adamw_of_the_package, "is not as torch has it"),
]
