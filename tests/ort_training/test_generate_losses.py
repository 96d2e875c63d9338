"""Every loss and option of the generated graphs against torch, run by onnxruntime-training's own Module."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from loss_cases import CASES, ROWS, WEIGHTS, Case, counted, draw
from ort_training_models import choose

from onnxft.generators.ort_training.generate import generate
from onnxft.generators.ort_training.standalone import KINDS
from onnxft.graph.builder import add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import BATCH, Optimizer
from onnxft.ort_training_environment import PYTHON_VARIABLE
from onnxft.step.loss_options import describe_loss

pytestmark = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set")

TOLERANCE = 1e-5
STANDALONE = [c for c in CASES if c.kind in KINDS and "label_smoothing" not in c.options and "shift" not in c.options]
"""The cases that the standalone form has, too."""
Results = Callable[[Case, bool], dict[str, np.ndarray]]


def forward_of(case: Case) -> Forward:
    """output = x * scale + shift, with the identity as the initial value and an output of the case's shape."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="affine")
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, (BATCH, *case.shape))
    shape = (1, *case.shape)
    scale = op.initializer(ir.tensor(np.ones(shape, np.float32)), name="scale")
    shift = op.initializer(ir.tensor(np.zeros(shape, np.float32)), name="shift")
    output = op.Add(op.Mul(x, scale), shift)
    output.name, output.shape = "output", ir.Shape([BATCH, *case.shape])
    graph.outputs.append(output)
    model = ir.Model(graph, ir_version=10)
    tensors = tuple(Tensor(name, shape, "float32", "parameter") for name in ("scale", "shift"))
    return Forward("affine", model, model, tensors, ("x",), ("output",), example_rows=ROWS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """(case, standalone) -> what the runs of `module_runs.py` gave; all in one process."""
    root = tmp_path_factory.mktemp("losses")
    places = {}
    for standalone, cases in ((False, CASES), (True, STANDALONE)):
        for case in cases:
            directory = places[case.name, standalone] = root / f"{len(places)}"
            forward = forward_of(case)
            loss = describe_loss(case.kind, forward.train.graph.outputs[0], case.suggested, case.options)
            generate(
                forward, choose("scale", "shift"), loss, Optimizer("sgd"), directory,
                batch_size=ROWS, standalone=standalone,
            )  # fmt: skip
            x, labels = draw(case, "float32")
            runs: dict[str, dict[str, np.ndarray]] = {name: {} for name in ("train.mean", "train.sum", "eval")}
            if not standalone:
                runs = {name: {"sample_weights": WEIGHTS} for name in runs}
                runs["train.mean"]["normalizer"] = np.array(0, np.float32)
                runs["train.sum"]["normalizer"] = np.array(1, np.float32)
            feeds = {
                f"{run}/{name}": a for run, own in runs.items() for name, a in {**own, "x": x, "labels": labels}.items()
            }
            np.savez(directory / "feeds.npz", **feeds)
    script = Path(__file__).with_name("module_runs.py")
    subprocess.run([os.environ[PYTHON_VARIABLE], "-I", str(script), str(root)], check=True)

    def of(case: Case, standalone: bool) -> dict[str, np.ndarray]:
        with np.load(places[case.name, standalone] / "results.npz") as stored:
            return dict(stored)

    return of


@dataclass(frozen=True)
class Expected:
    """What torch has, for rows of the given weights."""

    loss_sum: float
    weight_sum: float
    gradients: dict[str, np.ndarray]
    """Of the sum."""


def torch_loss(case: Case, weights: np.ndarray) -> Expected:
    output, labels = draw(case, "float32")
    parameters = {"scale": torch.ones(1, *case.shape), "shift": torch.zeros(1, *case.shape)}
    for p in parameters.values():
        p.requires_grad_()
    x, y = torch.tensor(output), torch.tensor(labels)
    each = case.reference(x * parameters["scale"] + parameters["shift"], y, "none")
    rows = torch.tensor(weights).reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
    total = (rows * each).sum()
    total.backward()
    weight = float((rows * counted(case, y, each)).sum())
    return Expected(float(total.detach()), weight, {n: p.grad.numpy() for n, p in parameters.items()})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_weighted_loss_equals_torch(case: Case, results: Results) -> None:
    found, torchs = results(case, False), torch_loss(case, WEIGHTS)
    mean = torchs.loss_sum / torchs.weight_sum
    for run, loss in (("train.mean", mean), ("train.sum", torchs.loss_sum), ("eval", mean)):
        np.testing.assert_allclose(found[f"{run}/loss"], loss, rtol=TOLERANCE)
        np.testing.assert_allclose(found[f"{run}/loss_sum"], torchs.loss_sum, rtol=TOLERANCE)
        np.testing.assert_allclose(found[f"{run}/weight_sum"], torchs.weight_sum, rtol=TOLERANCE)
    for name, gradient in torchs.gradients.items():
        for run, divisor in (("train.mean", torchs.weight_sum), ("train.sum", 1.0)):
            expected = gradient / divisor
            close = TOLERANCE * np.abs(expected).max()
            np.testing.assert_allclose(found[f"{run}/gradient/{name}"], expected, rtol=TOLERANCE, atol=close)


@pytest.mark.parametrize("case", STANDALONE, ids=lambda case: case.name)
def test_the_standalone_loss_equals_torchs_mean(case: Case, results: Results) -> None:
    found, torchs = results(case, True), torch_loss(case, np.ones(ROWS, np.float32))
    mean = torchs.loss_sum / torchs.weight_sum
    for run in ("train.mean", "eval"):
        np.testing.assert_allclose(found[f"{run}/loss"], mean, rtol=TOLERANCE)
        np.testing.assert_array_equal(found[f"{run}/output"], draw(case, "float32")[0])
    for name, gradient in torchs.gradients.items():
        expected = gradient / torchs.weight_sum
        close = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(found[f"train.mean/gradient/{name}"], expected, rtol=TOLERANCE, atol=close)
