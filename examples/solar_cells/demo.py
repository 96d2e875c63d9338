"""The solar cells example from end to end: export, linear probe, train, evaluate, tuned model, what changed.

Run as `python examples/solar_cells/demo.py [folder]`, or `nox -s demo`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from model import BATCH, factory
from prepare import main as prepare
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxft
from onnxft.training.config import TrainConfig
from onnxft.training.data import Dataset
from onnxft.training.metrics import accuracy, auc, balanced_accuracy
from onnxft.training.records import next_directory

TRAINED = ["_blocks.1[1-5].*", "_conv_head.*", "_fc.*"]
FROZEN = ["*_bn*"]
THREADS = 2


def features(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Pooled features (rows, 1280) of the pretrained, frozen network."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            x = torch.from_numpy(images[start : start + BATCH].astype(np.float32))
            parts.append(model.extract_features(x).mean((2, 3)).numpy())
    return np.concatenate(parts)


def measure(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and area under the ROC curve."""
    predicted, margin = logits.argmax(1), logits[:, 1] - logits[:, 0]
    return {
        "accuracy": accuracy(labels, predicted),
        "balanced accuracy": balanced_accuracy(labels, predicted),
        "AUC": auc(labels, margin),
    }


def probe(seen: Sequence[Dataset], test: Dataset) -> np.ndarray:
    """Logits (rows, 2) on `test` of a logistic regression on the frozen features of all that was `seen`.

    Its regularization is chosen by cross-validation for balanced accuracy, so that the probe is as good as it gets.
    """
    torch.set_num_threads(THREADS)
    model, _ = factory()
    model.eval()
    chosen = LogisticRegressionCV(
        Cs=np.logspace(-5, 0, 6),
        cv=4,
        scoring="balanced_accuracy",
        max_iter=2000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    classifier = make_pipeline(StandardScaler(), chosen)
    x = np.concatenate([features(model, part.arrays["inputs"]) for part in seen])
    classifier.fit(x, np.concatenate([part.arrays["labels"] for part in seen]))
    return classifier.predict_log_proba(features(model, test.arrays["inputs"]))


def main(folder: Path) -> None:
    """Everything, printed."""
    started = time.perf_counter()
    console = Console(highlight=False)
    data = folder / "data"
    if not (data / "test.npz").exists():
        prepare(data)
    train, val, test = (Dataset.load(data / f"{part}.npz") for part in ("train", "val", "test"))
    console.print(f"[bold]Export[/bold]  EfficientNet-Lite0, training {', '.join(TRAINED)}")
    artifact = onnxft.export(
        *factory(),
        folder / "artifacts" / "solar_cells",
        trainable=TRAINED,
        frozen=FROZEN,
        classes=["intact", "defective"],
    )
    console.print("[bold]Probe[/bold]   a linear classifier on the frozen features")
    labels, inputs = test.arrays["labels"], {"inputs": test.arrays["inputs"]}
    scores = {"linear probe": measure(labels, probe((train, val), test))}
    with onnxft.TrainSession(artifact, threads=THREADS) as session:
        before = session.predict(inputs)["output"]
    console.print("[bold]Train[/bold]   5 epochs on the cpu provider")
    # The rate was chosen on `val` too; at 1e-3 the pretrained blocks are shaken loose in some runs.
    config = TrainConfig(epochs=5, lr=3e-4, schedule="onecycle", threads=THREADS)
    run = onnxft.train(artifact, train, config, val=val, run=next_directory(folder / "runs", "solar_cells"))
    with onnxft.TrainSession(artifact, threads=THREADS) as session:
        session.set_parameters(load_file(run.directory / "weights" / "best.safetensors"))
        after = session.predict(inputs)["output"]
    rows = {"before tuning": measure(labels, before), **scores, "fine-tuned": measure(labels, after)}
    table = Table("held-back cells", *next(iter(rows.values())), title=f"{len(labels)} cells never trained on")
    for name, values in rows.items():
        table.add_row(name, *(f"{v:.1%}" for v in values.values()), style="bold" if name == "fine-tuned" else "")
    console.print(table)
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    console.print(f"{changed} of {len(labels)} verdicts changed. Tuned model: {run.directory / 'model.onnx'}")
    console.print(f"{time.perf_counter() - started:.0f} s in all.")
    gain = rows["fine-tuned"]["balanced accuracy"] - rows["linear probe"]["balanced accuracy"]
    if gain <= 0:
        sys.exit(f"The tuned model does not beat the linear probe ({gain:+.1%} balanced accuracy).")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/solar_cells"))
