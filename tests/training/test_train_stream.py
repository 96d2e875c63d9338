"""Batches from code that turn bad in the middle of a run: what is said, and what the run keeps."""

from __future__ import annotations

import csv
import json
import signal
import sys

import pytest

from onnxft.cli.main import main
from onnxft.errors import ConfigError, DataError, ExitStatus
from onnxft.training.loop import run
from onnxft.training.progress import Progress

CODE = """
import numpy as np

def good():
    rng = np.random.default_rng(0)
    return [
        {"image": rng.normal(size=(4, 1, 28, 28)).astype(np.float32), "labels": rng.integers(0, 10, 4)}
        for _ in range(5)
    ]

class Epoch:
    def __init__(self, epoch, spoil):
        self.epoch, self.spoil = epoch, spoil

    def __len__(self):
        return 5

    def __iter__(self):
        for number, batch in enumerate(good()):
            yield self.spoil(batch) if (self.epoch, number) == (1, 2) else batch

def bad(spoil):
    return lambda epoch: Epoch(epoch, spoil)

def _raise(batch):
    raise OSError("the disk is gone")

def _with(name, change):
    return lambda batch: {**batch, name: change(batch[name])}

raises = bad(_raise)
nan = bad(_with("image", lambda x: np.where(x == x[1, 0, 2, 3], np.nan, x)))
shape = bad(_with("image", lambda x: x[:, :, :5]))
dtype = bad(_with("image", lambda x: x.astype(np.int64)))
label = bad(_with("labels", lambda y: y * 0 + 10))
missing = bad(lambda batch: {"image": batch["image"]})
unknown = bad(lambda batch: {**batch, "mask": batch["labels"]})
rows = bad(lambda batch: {name: np.repeat(array, 5, axis=0) for name, array in batch.items()})
weights = bad(lambda batch: {**batch, "sample_weights": np.zeros(4)})
tuples = bad(lambda batch: (batch["image"], batch["labels"]))
"""

BAD = {
    "raises": ["raised OSError at batch 3: the disk is gone"],
    "nan": ["'image' has the value nan at [1, 0, 2, 3]"],
    "shape": ["'image' has the shape [4, 1, 5, 28]"],
    "dtype": ["'image' has the element type int64"],
    "label": ["'labels' has the value 10 at row 0"],
    "missing": ["the batch lacks 'labels'"],
    "unknown": ["no input 'mask'"],
    "rows": ["the batch has 20 rows", "at most 4"],
    "weights": ["weight 0"],
    "tuples": ["yields tuple as batch 3"],
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    (tmp_path / "rows.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_is_named_and_the_run_keeps_the_epochs_before(
    case, accumulate, rows, digits_artifact, monkeypatch, capsys
):
    arguments = [
        "onnxft", "train", digits_artifact, "--data", f"rows.py:{case}", "--epochs", "3", "--threads", "1",
        "--batch-size", "4", "--accumulate", accumulate, "--run", "bad",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == ExitStatus.DATA
    assert all(words in said for words in [*BAD[case], "batch 3 of epoch 2", "had after epoch 1"]), said

    options = {"epochs": 1, "threads": 1, "batch_size": 4, "accumulate": accumulate}
    whole = run(digits_artifact, "rows.py:good", options, run_dir=rows / "whole").directory
    bad = rows / "bad"
    for name in ("results.csv", "weights/last.safetensors", "weights/best.safetensors"):
        assert (bad / name).read_bytes() == (whole / name).read_bytes(), name
    position = json.loads((bad / "checkpoints" / "last" / "loop.json").read_text())
    assert (position["epoch"], position["batch"]) == (1, 0)
    assert not [p for p in bad.rglob("*") if p.suffix in (".part", ".previous")]
    assert not (bad / "model.onnx").exists()


def test_a_bad_batch_of_the_validation_is_named_before_training(rows, digits_artifact):
    code = CODE.replace("(1, 2)", "(0, 2)")
    (rows / "rows.py").write_text(code, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.py:nan', batch 3 of the evaluation: 'image' has the value nan"):
        run(digits_artifact, "rows.py:good", {"batch_size": 4, "threads": 1}, val="rows.py:nan", run_dir=rows / "bad")
    assert not (rows / "bad" / "weights").exists()


def test_a_resume_skips_the_batches_made(rows, digits_artifact):
    class Stop(Progress):
        left = 7

        def step(self, batches, rows, loss, lr):
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)

    options = {"epochs": 3, "batch_size": 4, "threads": 1, "schedule": "cosine"}
    whole = run(digits_artifact, "rows.py:good", options, run_dir=rows / "whole")
    stopped = run(digits_artifact, "rows.py:good", options, run_dir=rows / "stopped", progress=Stop())
    assert stopped.end == "interrupted"
    run(digits_artifact, "rows.py:good", run_dir=rows / "stopped", resume=True)
    for name in ("results.csv", "weights/last.safetensors"):
        assert (rows / "stopped" / name).read_bytes() == (whole.directory / name).read_bytes()
    table = (rows / "stopped" / "results.csv").read_text(encoding="utf-8")
    assert [row["step"] for row in csv.DictReader(table.splitlines())] == ["0", "5", "10", "15"]


def test_split_and_arrays_to_evaluate_on_exclude_each_other(rows, digits_artifact):
    arrays = {"image": [[[[0.0] * 28] * 28]] * 8, "labels": [0] * 8}
    with pytest.raises(ConfigError, match=r"split 0.3 and val both say what to evaluate on"):
        run(digits_artifact, arrays, {"split": 0.3}, val=arrays, run_dir=rows / "run")
    assert not (rows / "run").exists()
