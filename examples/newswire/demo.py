"""The newswire example from end to end: export, linear probe, train on a CSV file of texts, judge.

Run as `python -m examples.newswire.demo [seeds] [provider] [precision] [--method lora:8,head]`, or with
`--frozen-precision int8` or `--generator ort-training`, from the root of a checkout.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import onnxft
from examples.comparison import CONSOLE, arguments, judge, linear_probe, measure, show
from examples.newswire.model import BATCH, LENGTH, TOKENIZER, Classifier, factory
from examples.newswire.prepare import main as prepare
from onnxft.cli.render import frozen_text
from onnxft.frozen_weights import FrozenPrecision
from onnxft.manifest_file import read_manifest
from onnxft.training.run_directory import next_directory

FOLDER = Path("examples/newswire")
METHOD = "last:2"
THREADS = 2
OPTIONS = {
    "input_columns": {"": ["text"]}, "label_columns": ["topic"], "tokenizer": str(TOKENIZER), "buckets": [16, 32, 64],
    "epochs": 4, "schedule": "linear", "warmup": 0.1, "threads": THREADS, "metric": "balanced_accuracy",
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


def peak_memory(run: Path) -> float:
    """Greatest resident bytes that a run recorded at the end of an epoch, those of this process included."""
    with (run / "timings.csv").open(newline="", encoding="utf-8") as file:
        return max(float(row["resident_bytes"] or 0) for row in csv.DictReader(file))


def main(
    seeds: int,
    provider: str,
    precision: str,
    generator: Literal["native", "ort-training"],
    method: str | None,
    frozen_precision: FrozenPrecision,
) -> None:
    """Everything, printed."""
    started, where = time.perf_counter(), {"provider": provider, "precision": precision}
    if not (FOLDER / "data" / "test.csv").exists():
        prepare(FOLDER / "data")
    texts, topics = read("test")
    names = sorted({*read("train")[1].tolist()})
    method = method or METHOD
    CONSOLE.print(f"[bold]Export[/bold]  MiniLM in {frozen_precision}, training {method}, by {generator}")
    name = f"{method}-{generator}-{frozen_precision}".translate(str.maketrans(":,", "--"))
    artifact = onnxft.export(
        *factory(), FOLDER / "artifacts" / name,
        method=method, classes=names,
        dynamic_shapes={name: {1: "sequence"} for name in ("input_ids", "attention_mask")},
        no_decay_norms=generator == "native",  # onnxruntime-training has one decay for all
        generator=generator, frozen_precision=frozen_precision,
    )  # fmt: skip
    manifest = read_manifest(artifact)
    trained, size = manifest.num_trainable, manifest.num_trainable + manifest.frozen_parameters
    CONSOLE.print(f"        {trained:,} of {size:,} values are trained ({trained / size:.1%})")
    if manifest.frozen_weights is not None:
        CONSOLE.print(f"        {frozen_text(manifest.frozen_weights)}")
    CONSOLE.print("[bold]Probe[/bold]   a linear classifier on the frozen features")
    train, val = ((features(seen), labels) for seen, labels in map(read, ("train", "val")))
    probe = linear_probe(train, val, features(texts))
    rate = 1e-3 if "lora" in method else 3e-4  # B starts at 0, so that adapters take longer steps
    rows = {"linear probe": measure(topics, probe)}
    data = FOLDER / "data"
    for seed in range(seeds):
        CONSOLE.print(f"[bold]Train[/bold]   seed {seed}, on {provider} in {precision}")
        run = onnxft.train(
            artifact, data / "train.csv", {**OPTIONS, **where, "lr": rate, "seed": seed}, val=data / "val.csv",
            run=next_directory(FOLDER / "runs", "newswire"),
        )  # fmt: skip
        with onnxft.TrainSession(artifact, threads=THREADS, dimensions={"sequence": LENGTH}) as session:
            session.set_parameters(load_file(run.directory / "weights" / "best.safetensors"))
            (logits,) = session.predict(tokens(texts)).values()
        rows[f"fine-tuned, seed {seed}"] = measure(topics, np.array(names)[logits.argmax(1)])
        CONSOLE.print(f"        {peak_memory(run.directory) / 1e6:.0f} MB resident at most at the end of an epoch")
    show(f"{len(topics)} documents never trained on", rows)
    CONSOLE.print(f"{time.perf_counter() - started:.0f} s in all. Tuned model: {run.directory / 'model.onnx'}")
    tuned = [values["balanced accuracy"] for name, values in rows.items() if name != "linear probe"]
    judge(rows["linear probe"]["balanced accuracy"], tuned)


if __name__ == "__main__":
    main(**arguments(__doc__ or "", methods=True))
