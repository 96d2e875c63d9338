"""A standalone artifact trains as one that onnxruntime-training makes by its own LossType."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from loss_cases import ROWS, Case, cross_entropy
from ort_training_models import choose
from test_generate_losses import forward_of

from onnxft.generators.ort_training.generate import generate
from onnxft.graph.io import save_inference
from onnxft.manifest import Optimizer
from onnxft.ort_training_environment import PYTHON_VARIABLE
from onnxft.step.loss_options import describe_loss

pytestmark = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set")

KINDS = {
    # LossType: our loss, and the shape of a row of the output
    "CrossEntropyLoss": ("cross_entropy", (4,)),
    "MSELoss": ("mse", (4, 3)),
    "L1Loss": ("l1", (3,)),
    "BCEWithLogitsLoss": ("bce_with_logits", (5,)),
}
Stored = dict[str, np.ndarray]


def run(script: str, root: Path) -> None:
    place = Path(__file__).with_name(script)
    subprocess.run([os.environ[PYTHON_VARIABLE], "-I", str(place), str(root)], check=True)


def stored(directory: Path) -> Stored:
    with np.load(directory / "results.npz") as file:
        return dict(file)


def make(root: Path, *, logit: float = 1.0) -> None:
    """Under `own` the model of each loss for LossType, under `standalone` our artifacts, with the same feeds."""
    rng = np.random.default_rng(7)
    for name, (kind, shape) in KINDS.items():
        forward = forward_of(Case(name, kind, shape, cross_entropy()))
        x = rng.standard_normal((ROWS, *shape)).astype(np.float32)
        x[0] = logit
        labels: np.ndarray = rng.standard_normal((ROWS, *shape)).astype(np.float32)
        if kind == "cross_entropy":
            labels = rng.integers(0, shape[0], ROWS)
        elif kind == "bce_with_logits":
            labels = rng.integers(0, 2, (ROWS, *shape)).astype(np.float32)
            labels[0] = 1
        own, ours = root / "own" / name, root / "standalone" / name
        own.mkdir(parents=True)
        save_inference(forward.train, own / "forward.onnx")
        np.savez(own / "feeds.npz", x=x, labels=labels)
        loss = describe_loss(kind, forward.train.graph.outputs[0])
        generate(forward, choose("scale", "shift"), loss, Optimizer("sgd"), ours, batch_size=ROWS, standalone=True)
        np.savez(ours / "feeds.npz", **{"train/x": x, "train/labels": labels})
    run("own_losses.py", root / "own")
    run("module_runs.py", root / "standalone")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("losses")
    make(directory)
    return directory


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradients_are_those_of_its_own(name: str, root: Path) -> None:
    own, ours = stored(root / "own" / name), stored(root / "standalone" / name)
    np.testing.assert_allclose(ours["train/loss"], own["loss"], rtol=1e-5)
    for parameter in ("scale", "shift"):
        expected = own[f"gradient/{parameter}"]
        np.testing.assert_allclose(ours[f"train/gradient/{parameter}"], expected, rtol=1e-4, atol=1e-6)


def test_a_large_logit_is_not_nan_here_as_in_its_own(tmp_path: Path) -> None:
    make(tmp_path, logit=20.0)
    name = "BCEWithLogitsLoss"
    assert np.isnan(stored(tmp_path / "own" / name)["loss"]), "its block was repaired: the note in standalone.py is old"
    ours = stored(tmp_path / "standalone" / name)
    assert all(np.isfinite(value).all() for value in ours.values())
