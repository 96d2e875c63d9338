"""The newswire example from end to end: export, linear probe, train on a CSV file of texts, judge.

Run as `python -m examples.newswire.demo [seeds] [provider] [precision]`, from the root of a checkout.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import onnxft
from examples.comparison import CONSOLE, judge, linear_probe, measure, show
from examples.newswire.model import BATCH, LENGTH, TOKENIZER, Classifier, factory
from examples.newswire.prepare import main as prepare
from onnxft.training.records import next_directory

FOLDER = Path("examples/newswire")
TRAINED = ["encoder.encoder.layer.[45].*", "head.*"]
THREADS = 2
OPTIONS = {
    "input_columns": {"": ["text"]}, "label_columns": ["topic"], "tokenizer": str(TOKENIZER), "buckets": [16, 32, 64],
    "epochs": 4, "lr": 3e-4, "schedule": "linear", "warmup": 0.1, "threads": THREADS, "metric": "balanced_accuracy",
}  # fmt: skip


def read(part: str) -> tuple[list[str], np.ndarray]:
    """Texts and topics of a part."""
    with (FOLDER / "data" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [r["text"] for r in rows], np.array([r["topic"] for r in rows])


def tokens(texts: list[str]) -> dict[str, np.ndarray]:
    """Model inputs of texts, padded to 64 tokens."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in found], np.int64),
        "attention_mask": np.array([e.attention_mask for e in found], np.int64),
    }


def features(texts: list[str]) -> np.ndarray:
    """Pooled features (rows, 384) of the pretrained, frozen encoder."""
    torch.set_num_threads(THREADS)
    model: Classifier = factory()[0].eval()
    inputs = {name: torch.from_numpy(array) for name, array in tokens(texts).items()}
    with torch.no_grad():
        parts = [
            model.pooled(*(a[start : start + BATCH] for a in inputs.values())).numpy()
            for start in range(0, len(texts), BATCH)
        ]
    return np.concatenate(parts)


def main(seeds: int = 1, provider: str = "cpu", precision: str = "float32") -> None:
    """Everything, printed."""
    started, where = time.perf_counter(), {"provider": provider, "precision": precision}
    if not (FOLDER / "data" / "test.csv").exists():
        prepare(FOLDER / "data")
    texts, topics = read("test")
    names = sorted({*read("train")[1].tolist()})
    CONSOLE.print(f"[bold]Export[/bold]  MiniLM, training {', '.join(TRAINED)}")
    artifact = onnxft.export(
        *factory(), FOLDER / "artifacts" / "newswire", trainable=TRAINED, classes=names,
        dynamic_shapes={name: {1: "sequence"} for name in ("input_ids", "attention_mask")}, no_decay_norms=True,
    )  # fmt: skip
    CONSOLE.print("[bold]Probe[/bold]   a linear classifier on the frozen features")
    train, val = ((features(seen), labels) for seen, labels in map(read, ("train", "val")))
    probe = linear_probe(train, val, features(texts))
    rows = {"linear probe": measure(topics, probe)}
    data = FOLDER / "data"
    for seed in range(seeds):
        CONSOLE.print(f"[bold]Train[/bold]   seed {seed}, on {provider} in {precision}")
        run = onnxft.train(
            artifact, data / "train.csv", {**OPTIONS, **where, "seed": seed}, val=data / "val.csv",
            run=next_directory(FOLDER / "runs", "newswire"),
        )  # fmt: skip
        with onnxft.TrainSession(artifact, threads=THREADS, dimensions={"sequence": LENGTH}) as session:
            session.set_parameters(load_file(run.directory / "weights" / "best.safetensors"))
            (logits,) = session.predict(tokens(texts)).values()
        rows[f"fine-tuned, seed {seed}"] = measure(topics, np.array(names)[logits.argmax(1)])
    show(f"{len(topics)} documents never trained on", rows)
    CONSOLE.print(f"{time.perf_counter() - started:.0f} s in all. Tuned model: {run.directory / 'model.onnx'}")
    tuned = [values["balanced accuracy"] for name, values in rows.items() if name != "linear probe"]
    judge(rows["linear probe"]["balanced accuracy"], tuned)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
