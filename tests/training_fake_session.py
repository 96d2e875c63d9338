"""A session in numpy: a linear model with momentum and noise drawn from (seed, step), behind TrainSession's surface."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxft.manifest import GraphFile, Loss, Manifest, Optimizer, Parameter, Port
from onnxft.runtime.engine import Placement
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.processes import ALONE, Share
from onnxft.training.progress import Progress

NUM_FEATURES = 3


def make_manifest(loss: str = "cross_entropy", width: int = 4, batch_size: int = 5) -> Manifest:
    label = ("int64", ("batch",)) if loss == "cross_entropy" else ("float32", ("batch", width))
    graph = GraphFile(
        "eval.onnx",
        inputs=(
            Port("x", "input", "float32", ("batch", NUM_FEATURES)),
            Port("labels", "label", *label),
        ),
    )
    return Manifest(
        name="linear",
        generator="native",
        batch_size=batch_size,
        graphs={"eval": graph},
        parameters=(Parameter("weight", (width, NUM_FEATURES), "float32"),),
        loss=Loss(loss, "y", width if loss == "cross_entropy" else None),
        optimizer=Optimizer("sgd", weight_decay=0.01),
        frozen_parameters=8,
        files={"eval.onnx": ""},
    )


def make_rows(rows: int, *, seed: int = 0, width: int = 4) -> dict[str, np.ndarray]:
    """Separable rows: the class is the greatest of `width` fixed projections."""
    x = np.random.default_rng(seed).normal(size=(rows, NUM_FEATURES)).astype(np.float32)
    projection = np.random.default_rng(99).normal(size=(NUM_FEATURES, width))
    return {"x": x, "labels": (x @ projection).argmax(axis=1)}


@dataclass
class Result:
    loss: float
    weight_sum: float
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


class FakeSession:
    """y = x @ weight.T; counts calls so that tests can tell what the loop asked for."""

    def __init__(self, manifest: Manifest, *, batch_size=None, seed=0, supports_weights=True):
        self.manifest, self.seed, self.supports_weights = manifest, seed, supports_weights
        self.batch_size = batch_size or manifest.batch_size
        self.dimensions = {"batch": self.batch_size, **manifest.dimensions}
        self.placement = Placement("cpu", "cpu", {"train": {"cpu": 7}}, versions={"onnxruntime": "fake"})
        self.processes, self.share = ALONE, Share(size=self.batch_size)
        self.step_count = 0
        self.peak_bytes = None
        self.recomputes = False
        self.loss_scale = LossScale()
        self.weight = np.zeros(manifest.parameters[0].shape)
        self.momentum = np.zeros_like(self.weight)
        self.sums: list[tuple[np.ndarray, float]] = []
        self.updates: list[dict[str, float]] = []
        self.batches: list[dict[str, np.ndarray]] = []
        self.group_sizes: list[int] = []

    def step(self, batch, **options):
        result = self.accumulate(batch)
        self.update(**options)
        return result

    def accumulate(self, batch):
        assert len(batch["x"]) <= self.batch_size
        assert self.supports_weights or len(batch["x"]) == self.batch_size
        self.batches.append(batch)
        losses, slope, _, weights = self._forward(batch)
        self.sums.append(((slope * weights[:, None]).T @ batch["x"], weights.sum()))
        total = weights.sum()
        return Result(float((losses * weights).sum() / total) if total else math.nan, float(total))

    def update(self, *, lr, weight_decay=None, max_norm=math.inf, max_value=math.inf):
        self.updates.append({"lr": lr, "weight_decay": weight_decay, "max_norm": max_norm, "max_value": max_value})
        self.group_sizes.append(len(self.sums))
        gradient = sum(g for g, _ in self.sums) / max(sum(w for _, w in self.sums), 1e-9)
        noise = np.random.default_rng([self.seed, self.step_count]).normal(size=gradient.shape) * 0.01
        self.momentum = 0.9 * self.momentum + gradient + noise
        self.weight = self.weight - lr * self.momentum
        self.sums.clear()
        self.step_count += 1

    def evaluate(self, batch):
        losses, _, y, weights = self._forward(batch)
        return Result(float((losses * weights).sum() / weights.sum()), float(weights.sum()), {"y": y})

    def _forward(self, batch):
        y = batch["x"] @ self.weight.T
        rows = np.arange(len(y))
        if self.manifest.loss.kind == "mse":
            difference = y - batch["labels"]
            losses, slope = (difference**2).mean(axis=1), 2 * difference / y.shape[1]
        else:
            exp = np.exp(y - y.max(axis=1, keepdims=True))
            probability = exp / exp.sum(axis=1, keepdims=True)
            losses = -np.log(probability[rows, batch["labels"]])
            slope = probability.copy()
            slope[rows, batch["labels"]] -= 1
        return losses, slope, y, batch.get("sample_weights", np.ones(len(y)))

    @property
    def parameters(self):
        return {"weight": self.weight.copy()}

    @property
    def buffers(self):
        return {}

    def values(self):
        return {"weight": self.weight}

    def set_parameters(self, values):
        self.weight = values["weight"].copy()

    def save_checkpoint(self, path: Path):
        path.mkdir(parents=True)
        np.savez(path / "state.npz", weight=self.weight, momentum=self.momentum)
        (path / "checkpoint.json").write_text(json.dumps([self.step_count, self.seed]))

    def load_checkpoint(self, path: Path):
        with np.load(path / "state.npz") as state:
            self.weight, self.momentum = state["weight"], state["momentum"]
        self.step_count, self.seed = json.loads((path / "checkpoint.json").read_text())

    def export_model(self, path: Path, values):
        path.write_bytes(values["weight"].tobytes())

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class StopAfter(Progress):
    """Presses Ctrl-C once, during the given update."""

    def __init__(self, update):
        self.update = update

    def step(self, batches, rows, loss, lr):
        self.update -= 1
        if self.update == 0:
            os.kill(os.getpid(), signal.SIGINT)
