"""A run that is killed again and again, and resumed each time, ends as one that was never stopped."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

EPOCHS = 16
OPTIONS = [
    "--threads", "1", "--epochs", str(EPOCHS), "--batch-size", "16", "--accumulate", "2", "--schedule", "onecycle",
    "--lr", "0.01", "--ema", "0.9", "--clip-norm", "1", "--seed", "7",
]  # fmt: skip
EQUAL = [
    "results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx", "metrics.json",
    "confusion_matrix.csv", "checkpoints/last/parameters.safetensors", "checkpoints/last/state.safetensors",
    "checkpoints/last/averages.safetensors", "checkpoints/last/loop.json",
]  # fmt: skip


def rows(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 7)).astype(np.float32)
    return {"x": x, "labels": (x @ np.random.default_rng(9).normal(size=(7, 3))).argmax(axis=1)}


def write_arrays(root):
    np.savez(root / "train.npz", **rows(4000, 0))
    np.savez(root / "val.npz", **rows(300, 1))
    return ["--data", str(root / "train.npz"), "--val", str(root / "val.npz")]


def write_pictures(root):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (onnxft[images])")
    rng = np.random.default_rng(3)
    for number in range(240):
        folder = root / "pictures" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number}.png")
    changed = ["--augment", "flip,crop,rotate", "--balance", "--split", "0.2", "--workers", "2"]
    return ["--data", str(root / "pictures"), *changed]


class Series:
    """`onnxft train` as a process over one data set, killed as told."""

    def __init__(self, artifact, root, write):
        self.root, self.random, self.hit = root, random.Random(0), Counter()
        self.command = [sys.executable, "-m", "onnxft", "train", str(artifact), *write(root)]
        start = time.monotonic()
        self.whole = self.complete(root / "whole")
        self.seconds = time.monotonic() - start

    def start(self, directory, *options):
        # A run that was killed before config.yaml was written has not begun.
        how = ["--resume"] if (directory / "config.yaml").exists() else options or OPTIONS
        with (self.root / "output.txt").open("wb") as output:
            return subprocess.Popen([*self.command, *how, "--run", str(directory)], stdout=output, stderr=output)

    def complete(self, directory, *options):
        process = self.start(directory, *options)
        assert process.wait(120) == 0, (self.root / "output.txt").read_text()
        return {name: (directory / name).read_bytes() for name in EQUAL}

    def kill(self, directory, *, saving):
        """Start or resume, and kill; False where the run was complete before."""
        known = log_size(directory)
        process = self.start(directory)
        end = time.monotonic() + self.random.uniform(0, self.seconds / 2)
        writes, seen = self.random.randint(1, 60) if saving else 0, set()
        while process.poll() is None and (len(seen) < writes if saving else time.monotonic() < end):
            seen |= unfinished(directory, process.pid)
            if not saving:
                time.sleep(0.001)
        process.kill()
        status = process.wait()
        assert status in (0, -9), (self.root / "output.txt").read_text()
        if status == 0:
            return False
        if unfinished(directory, process.pid):
            self.hit["saving"] += 1
        elif log_size(directory) == known:
            self.hit["start-up"] += 1
        else:
            results = directory / "results.csv"
            complete = results.exists() and len(results.read_text().splitlines()) == EPOCHS + 2
            self.hit["end" if complete else "training"] += 1
        return True


def unfinished(directory, pid):
    """What the process is writing now; of a name that comes again each epoch, which one."""
    folders = (directory, directory / "weights", directory / "checkpoints")
    return {(p, inode(p)) for folder in folders for p in folder.glob(f".*.{pid}.part")}


def inode(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def log_size(directory):
    log = directory / "train.log"
    return log.stat().st_size if log.exists() else 0


@pytest.fixture(scope="module")
def series(exported, tmp_path_factory):
    return Series(exported("dropped", batch_size=16), tmp_path_factory.mktemp("series"), write_arrays)


@pytest.fixture(scope="module")
def pictures(exported, tmp_path_factory):
    return Series(exported("digits", batch_size=16), tmp_path_factory.mktemp("pictures"), write_pictures)


def killed(series, root, kills, seed):
    """{what was hit: how often} after `kills` kills of one run, and of further ones where it was complete before."""
    series.random, series.hit = random.Random(seed), Counter()
    made = runs = 0
    while made < kills:
        directory = root / f"killed-{runs}"
        while made < kills and series.kill(directory, saving=made % 2 == 1):
            made += 1
        runs += 1
        assert runs <= kills, "runs end before they can be killed"
        ended = series.complete(directory)
        for name in EQUAL:
            assert ended[name] == series.whole[name], f"{name} of run {runs} after {made} kills ({dict(series.hit)})"
        assert not list(directory.rglob("*.part"))
        log = (directory / "train.log").read_text()
        assert log.endswith("\n")
        assert all(line[:2] == "20" and line[19] == " " for line in log.splitlines())
    print(f"{made} kills over {runs} runs hit {dict(series.hit)}")
    return series.hit


def test_three_kills_change_nothing(series, tmp_path):
    assert sum(killed(series, tmp_path, 3, seed=0).values()) == 3


def test_the_saved_configuration_repeats_a_run(series, tmp_path):
    again = series.complete(tmp_path / "again", "--config", str(series.root / "whole" / "config.yaml"))
    for name in EQUAL:
        assert again[name] == series.whole[name], name


@pytest.mark.slow
@pytest.mark.parametrize("data", ["series", "pictures"])
def test_fifty_kills_change_nothing(data, request, tmp_path):
    hit = killed(request.getfixturevalue(data), tmp_path, 50, seed=1)
    assert sum(hit.values()) == 50
    assert all(hit[phase] for phase in ("start-up", "training", "saving")), hit
