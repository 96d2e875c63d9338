"""Both forms of artifacts that need more than a loss on logits: losses of the model's own, masks, further outputs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from ort_training_models import ADAMW, CASES, choose, make_forward, make_module

from onnxft.generators.ort_training.generate import generate
from onnxft.graph.builder import add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import BATCH, Loss, Manifest
from onnxft.ort_training_environment import PYTHON_VARIABLE
from onnxft.runtime.random_inputs import draw
from onnxft.step.loss_options import describe_loss, inputs_of

pytestmark = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set")

ROWS, COLUMNS = 5, 4
rng = np.random.default_rng(3)
X = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
TARGET = rng.standard_normal(ROWS).astype(np.float32)
WEIGHTS = np.array([1, 0, 2, 0.5, 1.5], np.float32)
W = np.linspace(0.5, 2, COLUMNS, dtype=np.float32)
Arrays = dict[str, np.ndarray]
Run = Callable[[Manifest, Path, Arrays], Arrays]


def own_loss(*, scalar: bool) -> tuple[Forward, Loss]:
    """loss = (Σ x w - target)² for each row, or its mean; `label` is the place of the largest x w, a whole number.

    The loss has the name that the generator would take, as has a value inside the model.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="own")
    op = builder(graph)
    x, target = add_input(op, "x", ir.DataType.FLOAT, (BATCH, COLUMNS)), add_input(op, "t", ir.DataType.FLOAT, (BATCH,))
    product = op.Mul(x, op.initializer(ir.tensor(W), name="w"))
    product.name = "normalizer"
    error = op.Sub(op.ReduceSum(product, [1], keepdims=0), target)
    loss = op.Mul(error, error)
    loss = op.ReduceMean(loss, keepdims=0) if scalar else loss
    label = op.ArgMax(product, axis=1, keepdims=0)
    loss.name, label.name = "loss", "label"
    graph.outputs.extend([label, loss])
    model = ir.Model(graph, ir_version=10)
    forward = Forward(
        "own", model, model, (Tensor("w", (COLUMNS,), "float32", "parameter"),), ("x", "t"), ("label", "loss")
    )
    return forward, describe_loss("model", loss, inputs=inputs_of(graph, loss))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Feed one step and one evaluation to onnxruntime-training's Module; see `module_runs.py`."""

    def with_module(manifest: Manifest, directory: Path, feeds: Arrays) -> Arrays:
        wanted = {
            f"{name}/{port.name}": feeds[port.name]
            for name, role in (("train", "ort_training"), ("eval", "ort_eval"))
            for port in manifest.graphs[role].inputs  # type: ignore[index]
        }
        np.savez(directory / "feeds.npz", **wanted)
        script = Path(__file__).with_name("module_runs.py")
        subprocess.run([os.environ[PYTHON_VARIABLE], "-I", str(script), str(directory.parent)], check=True)
        with np.load(directory / "results.npz") as stored:
            return dict(stored)

    return with_module


def torch_loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The weighted mean of the own loss, and its gradient."""
    w = torch.tensor(W, requires_grad=True)
    each = ((torch.tensor(X) * w).sum(1) - torch.tensor(TARGET)) ** 2
    loss = (each * torch.tensor(weights)).sum() / float(weights.sum())
    loss.backward()
    return float(loss.detach()), w.grad.numpy()


@pytest.mark.parametrize(
    ("scalar", "standalone", "weights", "name"),
    [
        (False, False, WEIGHTS, "loss_"),
        (False, True, np.ones(ROWS, np.float32), "loss_"),
        (True, False, np.ones(ROWS, np.float32), "loss_"),
        (True, True, np.ones(ROWS, np.float32), "loss"),
    ],
)
def test_a_loss_of_the_model(
    scalar: bool, standalone: bool, weights: np.ndarray, name: str, run: Run, tmp_path: Path
) -> None:
    forward, loss = own_loss(scalar=scalar)
    manifest = generate(
        forward, choose("w"), loss, ADAMW, tmp_path / "out", batch_size=ROWS, standalone=standalone
    )  # fmt: skip
    training = manifest.graph("ort_training")
    assert training.outputs[0].name == name
    assert manifest.graph("ort_eval").named("output", "outputs")[0].name == "label"
    feeds = {"x": X, "t": TARGET, "sample_weights": weights}
    feeds |= {p.name: np.array(0, np.float32) for p in training.named("normalizer")}
    found = run(manifest, tmp_path / "out", feeds)
    expected, gradient = torch_loss(weights)
    for kind in ("train", "eval"):
        np.testing.assert_allclose(found[f"{kind}/{name}"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["train/gradient/w"], gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["eval/label"], np.argmax(X * W, axis=1))
    if standalone:
        np.testing.assert_array_equal(found["train/label"], np.argmax(X * W, axis=1))


@pytest.mark.parametrize("standalone", [False, True], ids=["default", "standalone"])
@pytest.mark.parametrize(
    ("label", "ignored", "wrong"),
    [(3, None, True), (-1, None, True), (2**40, None, True), (2, None, False), (-100, -100, False), (-1, -100, True)],
)
def test_a_label_that_is_no_class_makes_the_loss_nan(
    label: int, ignored: int | None, wrong: bool, standalone: bool, run: Run, tmp_path: Path
) -> None:
    case = CASES["mlp_sgd"]
    loss = replace(case.loss, ignore_index=ignored)
    manifest = generate(
        make_forward(case), choose(*case.trainable), loss, case.optimizer, tmp_path / "out", batch_size=ROWS,
        standalone=standalone,
    )  # fmt: skip
    x = rng.standard_normal((ROWS, 5)).astype(np.float32)
    labels = np.array([0, 1, label, 2, 1])
    feeds = {"x": x, "labels": labels, "sample_weights": WEIGHTS, "normalizer": np.array(0, np.float32)}
    found = run(manifest, tmp_path / "out", feeds)
    assert np.isnan(found["train/loss"]) == np.isnan(found["eval/loss"]) == wrong


def test_dropout_by_masks_equals_torch(run: Run, tmp_path: Path) -> None:
    case = CASES["dropout"]
    forward = make_forward(case)
    for model in (forward.train, forward.infer):
        next(node for node in model.graph if node.op_type == "Dropout").outputs[0].name = "dropped"
    manifest = generate(
        forward, choose(*case.trainable), case.loss, ADAMW, tmp_path / "out", batch_size=ROWS,
        additional_outputs=["logits", "dropped"],
    )  # fmt: skip
    assert manifest.runtime_random == ()
    ports = manifest.graph("ort_training").inputs
    masks = draw(ports, {BATCH: ROWS}, seed=2, step=0, micro_step=0)
    x = rng.standard_normal((ROWS, 5)).astype(np.float32)
    labels = rng.integers(0, 3, ROWS)
    feeds = {"x": x, "labels": labels, "sample_weights": WEIGHTS, "normalizer": np.array(0, np.float32), **masks}
    found = run(manifest, tmp_path / "out", feeds)

    net = make_module(case)
    hidden = torch.relu(net[0](torch.tensor(x))) * torch.tensor(masks["random.0"])
    logits = net[3](hidden)
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
    ((each * torch.tensor(WEIGHTS)).sum() / float(WEIGHTS.sum())).backward()
    assert set(np.unique(masks["random.0"])) == {0.0, 2.0}
    np.testing.assert_allclose(found["train/dropped"], hidden.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["train/logits"], logits.detach().numpy(), rtol=1e-5, atol=1e-6)
    for name in case.trainable:
        expected = net.get_parameter(name).grad.numpy()
        np.testing.assert_allclose(found[f"train/gradient/{name}"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found["eval/logits"], net.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_standalone_dropout_is_the_runtimes_own(run: Run, tmp_path: Path) -> None:
    case = CASES["dropout"]
    forward = make_forward(case)
    for model in (forward.train, forward.infer):
        relu, dropout = (next(node for node in model.graph if node.op_type == t) for t in ("Relu", "Dropout"))
        relu.outputs[0].name, dropout.outputs[0].name = "hidden", "dropped"
    manifest = generate(
        forward, choose(*case.trainable), case.loss, ADAMW, tmp_path / "out", batch_size=ROWS, standalone=True,
        additional_outputs=["hidden", "dropped"],
    )  # fmt: skip
    assert manifest.runtime_random == (dropout.name,)
    x = rng.standard_normal((ROWS, 5)).astype(np.float32)
    found = run(manifest, tmp_path / "out", {"x": x, "labels": rng.integers(0, 3, ROWS)})
    kept = found["train/dropped"] != 0
    np.testing.assert_allclose(found["train/dropped"][kept], 2 * found["train/hidden"][kept], rtol=1e-6)
    assert not kept[found["train/hidden"] > 0].all(), "nothing was dropped"
    np.testing.assert_array_equal(found["eval/dropped"], found["eval/hidden"])


def test_the_normalizer_1_gives_the_sum_of_a_scalar_loss(run: Run, tmp_path: Path) -> None:
    forward, loss = own_loss(scalar=True)
    manifest = generate(forward, choose("w"), loss, ADAMW, tmp_path / "out", batch_size=ROWS)
    (normalizer,) = manifest.graph("ort_training").named("normalizer")
    ones = np.ones(ROWS, np.float32)
    feeds = {"x": X, "t": TARGET, "sample_weights": ones, normalizer.name: np.array(1, np.float32)}
    found = run(manifest, tmp_path / "out", feeds)
    expected, gradient = torch_loss(ones)
    np.testing.assert_allclose(found["train/loss_"], expected * ROWS, rtol=1e-5)
    np.testing.assert_allclose(found["train/gradient/w"], gradient * ROWS, rtol=1e-5, atol=1e-5)
