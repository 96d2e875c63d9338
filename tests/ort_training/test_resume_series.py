"""Runs on onnxruntime-training that are interrupted or killed again and again end as one that was never stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_fake_session import StopAfter

from onnxft.training.loop import run

EPOCHS = 5
EQUAL = [
    "results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx", "metrics.json",
    "confusion_matrix.csv", "checkpoints/last/parameters.safetensors", "checkpoints/last/state.safetensors",
    "checkpoints/last/loop.json",
]  # fmt: skip
PLAIN = {"lr": 0.02}
ALL = {"lr": 0.02, "accumulate": 2, "clip_norm": 0.5, "clip_value": 0.1, "schedule": "onecycle", "balance": True}
# what: (export options, batch size, options of the run)
FORMS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "dropout, a short last batch, everything": ({"name": "dropped"}, 16, ALL),
    "dropout": ({"name": "dropped"}, 16, PLAIN),
    "sgd": ({"name": "mlp", "optimizer": "sgd"}, 16, ALL),
    "standalone, the short batch left out": ({"name": "mlp", "standalone": True}, 16, {"lr": 0.02, "clip_norm": 0.5}),
}


def rows(count: int, seed: int, classes: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 7)).astype(np.float32)
    return {"x": x, "labels": (x @ np.random.default_rng(9).normal(size=(7, classes))).argmax(axis=1)}


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in EQUAL}


@pytest.mark.parametrize("form", FORMS)
def test_interrupts_change_nothing(form: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    made, size, options = FORMS[form]
    artifact = exported(**made, batch_size=size, generator="ort-training")
    classes = 3 if made["name"] == "dropped" else 5
    data, val = rows(150, 0, classes), rows(60, 1, classes)
    config = {"epochs": EPOCHS, "threads": 1, "seed": 3, **options}
    whole = contents(run(artifact, data, config, val=val, run_dir=tmp_path / "whole").directory)
    rng, stops, end = random.Random(form), 0, "interrupted"
    while end == "interrupted":
        begun = (tmp_path / "stopped").exists()
        ended = run(
            artifact, data, {} if begun else config, val=val, run_dir=tmp_path / "stopped", resume=begun,
            progress=StopAfter(rng.randint(1, 9)),
        )  # fmt: skip
        stops, end = stops + (ended.end == "interrupted"), ended.end
    assert stops >= 3
    for name, content in contents(tmp_path / "stopped").items():
        assert content == whole[name], f"{name} after {stops} interrupts"


def kill_and_resume(artifact: Path, root: Path, kills: int) -> None:
    """`onnxft train` and its worker, killed as a power cut would; each time the run goes on."""
    np.savez(root / "train.npz", **rows(1500, 0, 3))
    np.savez(root / "val.npz", **rows(60, 1, 3))
    command = [
        sys.executable, "-m", "onnxft", "train", str(artifact), "--data", str(root / "train.npz"), "--val",
        str(root / "val.npz"),
    ]  # fmt: skip
    options = ["--threads", "1", "--epochs", "6", "--lr", "0.01", "--schedule", "cosine", "--clip-norm", "1"]

    def start(directory: Path) -> subprocess.Popen[bytes]:
        how = ["--resume"] if (directory / "config.yaml").exists() else options
        with (root / "output.txt").open("wb") as output:
            return subprocess.Popen([*command, *how, "--run", str(directory)], stdout=output, stderr=output)

    begun = time.monotonic()
    assert start(root / "whole").wait(120) == 0, (root / "output.txt").read_text()
    seconds, rng = time.monotonic() - begun, random.Random(0)
    for _ in range(kills):
        process = start(root / "killed")
        time.sleep(rng.uniform(seconds / 3, seconds))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), (root / "output.txt").read_text()
    assert start(root / "killed").wait(120) == 0, (root / "output.txt").read_text()
    for name, content in contents(root / "killed").items():
        assert content == (root / "whole" / name).read_bytes(), name


def test_kills_change_nothing(exported: Callable[..., Path], tmp_path: Path) -> None:
    kill_and_resume(exported("dropped", generator="ort-training"), tmp_path, 2)


@pytest.mark.slow
def test_thirty_kills_change_nothing(exported: Callable[..., Path], tmp_path: Path) -> None:
    kill_and_resume(exported("dropped", generator="ort-training"), tmp_path, 30)
