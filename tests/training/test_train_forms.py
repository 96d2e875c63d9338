"""Every form of data through the command line, on real sessions: a run, its exact repeat, and its resume."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from test_text import make_tokenizer
from torch import nn

import onnxft
from onnxft.cli.main import main
from onnxft.errors import ExitStatus
from onnxft.training import loop

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (onnxft[images])")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
CODE = """
import numpy as np

def batches(epoch):
    rng = np.random.default_rng(epoch)
    for _ in range(4):
        yield {"x": rng.normal(size=(4, 7)).astype(np.float32), "labels": rng.integers(0, 3, 4)}

class Sized:
    passes = 0

    def __len__(self):
        return 4

    def __iter__(self):
        Sized.passes += 1
        for i, batch in enumerate(batches(0)):
            if Sized.passes == 2 and i == 2:
                raise OSError("gone")
            yield batch
"""


class Texts(nn.Module):
    """Masked mean of embeddings, dropout, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 6)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return self.head(self.dropout((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("forms")
    vector = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3))
    picture = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 4, 3))
    ids = torch.randint(4, 9, (4, 6))
    return {
        "vector": onnxft.export(vector, torch.randn(4, 7), root / "vector", input_names=["x"]),
        "picture": onnxft.export(picture, torch.randn(4, 3, 11, 9), root / "picture", classes=["bird", "cat", "dog"]),
        "text": onnxft.export(
            Texts(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, root / "text",
            dynamic_shapes={name: {1: "sequence"} for name in ("input_ids", "attention_mask")},
        ),
    }  # fmt: skip


def write_npz(folder: Path) -> list[str]:
    rng = np.random.default_rng(1)
    np.savez(folder / "d.npz", x=rng.normal(size=(23, 7)).astype(np.float32), labels=np.arange(23) % 3)
    return ["--data", "d.npz", "--split", "0.3"]


def write_csv(folder: Path) -> list[str]:
    rng = np.random.default_rng(1)
    with (folder / "d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = ["m0, in mm", "m1=a", *(f"m{i}" for i in range(2, 7))]
        writer.writerow([*names, "kind"])
        writer.writerows([[*rng.normal(size=7).round(3), "abc"[i % 3]] for i in range(21)])
    return ["--data", "d.csv", "--input-column", f"x={json.dumps(names)}", "--label-column", "kind",
            "--classes", "c,a,b", "--balance", "--split", "0.3", "--workers", "0"]  # fmt: skip


def write_jsonl(folder: Path) -> list[str]:
    rng = np.random.default_rng(1)
    make_tokenizer(words=["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]).save(str(folder / "tokenizer.json"))
    rows = [{"text": " ".join(rng.choice(WORDS, 1 + i % 9)), "label": i % 3} for i in range(26)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    return ["--data", "d.jsonl", "--val", "v.jsonl", "--input-column", "text", "--label-column", "label",
            "--tokenizer", "tokenizer.json", "--buckets", "4,8,12"]  # fmt: skip


def write_folder(folder: Path) -> list[str]:
    rng = np.random.default_rng(1)
    for i in range(19):
        place = folder / "d" / ["bird", "cat", "dog"][i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (13, 10, 3), np.uint8)).save(place / f"{i}.png")
    return ["--data", "d", "--split", "0.3", "--augment", "flip,crop,color", "--preprocess", "mean=0.5",
            "--preprocess", "std=0.5,0.4,0.3", "--workers", "2", "--balance"]  # fmt: skip


def write_code(folder: Path) -> list[str]:
    (folder / "rows.py").write_text(CODE)
    return ["--data", "rows.py:batches"]


FORMS = {
    "npz": ("vector", write_npz),
    "csv": ("vector", write_csv),
    "jsonl": ("text", write_jsonl),
    "folder": ("picture", write_folder),
    "code": ("vector", write_code),
}
COMMON = ["--epochs", "3", "--lr", "1e-2", "--accumulate", "2", "--ema", "0.8", "--threads", "1"]


@pytest.fixture
def onnxft_command(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def outcome(run: Path) -> tuple[bytes, bytes, bytes]:
    return tuple((run / name).read_bytes() for name in ("results.csv", "weights/last.safetensors", "model.onnx"))


@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_repeated_and_resumed_bit_for_bit(form, artifacts, onnxft_command, tmp_path, monkeypatch):
    name, write = FORMS[form]
    data = write(tmp_path)
    code, out, err = onnxft_command("train", artifacts[name], *data, *COMMON, "--run", "first")
    assert code == 0, err
    first = tmp_path / "first"
    rows = list(csv.DictReader((first / "results.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert (saved["artifact"], saved["data"]) == (str(artifacts[name]), data[1])

    again = ["--data", data[1]] if form == "code" else []
    code, _, err = onnxft_command("train", "--config", "first/config.yaml", *again, "--run", "again")
    assert code == 0, err
    assert outcome(tmp_path / "again") == outcome(first)

    # Interrupted in the second epoch, and resumed with what the run itself knows.
    update, made = loop.update, []

    def interrupted(session, group, plan, position, progress):
        done = update(session, group, plan, position, progress)
        made.append(position.step)
        if len(made) == len(rows[1:]) + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", interrupted)
        code, out, _ = onnxft_command("train", artifacts[name], *data, *COMMON, "--run", "cut")
    assert code == ExitStatus.INTERRUPTED
    assert "--resume --run cut" in out
    code, _, err = onnxft_command("train", "--resume", "--run", "cut", *again)
    assert code == 0, err
    assert outcome(tmp_path / "cut") == outcome(first)


def test_code_is_taken_from_the_command_line_alone(artifacts, onnxft_command, tmp_path):
    data = write_code(tmp_path)
    assert onnxft_command("train", artifacts["vector"], *data, *COMMON, "--run", "first")[0] == 0
    (tmp_path / "rows.py").write_text("raise SystemExit('this must not run')")
    for arguments in (["--config", "first/config.yaml"], ["--resume", "--run", "first"]):
        code, _, err = onnxft_command("train", *arguments)
        assert code == ExitStatus.CONFIG
        assert "names the code 'rows.py:batches' as data, and code is only run when the command line names it" in err
    (tmp_path / "val.yaml").write_text("val: rows.py:batches")
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 7), np.float32), labels=np.zeros(8, np.int64))
    code, _, err = onnxft_command("train", artifacts["vector"], "--data", "d.npz", "--config", "val.yaml")
    assert code == ExitStatus.CONFIG
    assert "names the code 'rows.py:batches' as val" in err


def test_a_picture_that_breaks_in_the_middle_leaves_the_run_as_it_was(artifacts, onnxft_command, tmp_path, monkeypatch):
    data = [d for d in write_folder(tmp_path) if d not in ("--augment", "flip,crop,color")]
    broken = sorted((tmp_path / "d").rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:200])  # its header is whole
    monkeypatch.setattr("onnxft.data.images._memory_limit", lambda: 0)
    code, _, err = onnxft_command("train", artifacts["picture"], *data, *COMMON, "--run", "first", "--seed", "1")
    assert code == ExitStatus.DATA
    assert broken.name in err
    assert not list(tmp_path.rglob("*.part"))


def test_code_that_fails_in_an_epoch_names_the_batch_and_keeps_the_epochs_before(artifacts, onnxft_command, tmp_path):
    (tmp_path / "rows.py").write_text(CODE)
    np.savez(tmp_path / "v.npz", x=np.ones((5, 7), np.float32), labels=np.arange(5) % 3)
    code, _, err = onnxft_command(
        "train", artifacts["vector"], "--data", "rows.py:Sized", "--val", "v.npz", "--epochs", "3", "--run", "run"
    )
    assert code == ExitStatus.DATA
    assert "rows.py:Sized' raised OSError at batch 3: gone. This was batch 3 of epoch 2" in err
    assert "the run keeps what it had after epoch 1" in err
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]


REFUSED = {
    "split and val": (["--data", "d.npz", "--split", "0.3", "--val", "d.npz"], ExitStatus.CONFIG, "leave one out"),
    "split of all": (["--data", "d.npz", "--split", "1"], ExitStatus.CONFIG, "above 0 and below 1"),
    "split of nothing": (["--data", "d.npz", "--split", "0.001"], ExitStatus.DATA, "holds back no row"),
    "no data": ([], ExitStatus.CONFIG, "no data is given"),
    "no such data": (["--data", "nothing.csv"], ExitStatus.DATA, "there is no data file 'nothing.csv'"),
    "unknown data": (["--data", "d.parquet"], ExitStatus.DATA, "there is no data 'd.parquet'"),
    "columns of arrays": (
        ["--data", "d.npz", "--label-column", "y"],
        ExitStatus.CONFIG,
        "label_columns does not apply",
    ),
    "buckets of arrays": (["--data", "d.npz", "--buckets", "4,8"], ExitStatus.CONFIG, "the one open dimension"),
    "bucket twice": (["--data", "d.npz", "--buckets", "4,4"], ExitStatus.CONFIG, "each once"),
    "bucket of words": (["--data", "d.npz", "--buckets", "4,x"], ExitStatus.USAGE, "not of the form N,N"),
    "balanced code": (["--data", "rows.py:batches", "--balance"], ExitStatus.CONFIG, "balance does not apply"),
    "split code": (["--data", "rows.py:batches", "--split", "0.2"], ExitStatus.CONFIG, "split needs rows"),
    "code that is not there": (["--data", "rows.py:batch"], ExitStatus.DATA, "Did you mean 'batches'"),
    "empty word": (["--data", "d.npz", "--classes", "a,,b"], ExitStatus.USAGE, "holds an empty word"),
    "batch larger than data": (["--data", "d.npz", "--batch-size", "99"], ExitStatus.DATA, "fewer than the batch size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(case, artifacts, onnxft_command, tmp_path):
    arguments, status, words = REFUSED[case]
    write_npz(tmp_path)
    write_code(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = onnxft_command("train", artifacts["vector"], *arguments)
    assert (code, words in err) == (status, True), err
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


def test_without_an_artifact_nothing_is_trained(onnxft_command):
    code, _, err = onnxft_command("train", "--data", "d.npz")
    assert (code, err) == (ExitStatus.CONFIG, "Error: no artifact is given. Name it, or a configuration that does.\n")


def test_the_split_is_that_of_the_seed(artifacts, onnxft_command, tmp_path):
    data = write_npz(tmp_path)
    for seed in (0, 1):
        onnxft_command("train", artifacts["vector"], *data, "--epochs", "1", "--seed", seed, "--run", f"s{seed}")
    first, second = (load_file(tmp_path / f"s{seed}" / "weights" / "last.safetensors") for seed in (0, 1))
    assert any((first[name] != second[name]).any() for name in first)
