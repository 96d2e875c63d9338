"""The loop in several processes, threads in their place: one run, which all of them begin, make and end together."""

from __future__ import annotations

import csv
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train_real import pictures
from together import together

from onnxft.errors import ConfigError, DataError, DivergedError, WriteError
from onnxft.manifest_file import read_manifest
from onnxft.runtime.processes import ALONE
from onnxft.training.config import TrainConfig
from onnxft.training.loop import run, train
from onnxft.training.lr_range import find_lr
from onnxft.training.opening import opened
from onnxft.training.progress import Progress
from onnxft.training.records import Records

SIZE = 8
DATA = pictures(75, 0)
WEIGHTED = {**DATA, "sample_weights": np.where(np.arange(75) % 3, 1.5, 0.25)}
BASE = {"epochs": 3, "lr": 3e-3, "threads": 1, "seed": 3}


class Shown(Progress):
    def __init__(self):
        self.rows, self.notes = 0, []

    def step(self, batches, rows, loss, lr):
        self.rows += rows

    def say(self, note):
        self.notes.append(note)


def made(artifact, directory, options, processes=ALONE, *, data=DATA, val=None, resume=False, progress=None):
    number = processes.size
    size = SIZE if number > 1 else 2 * SIZE
    config = TrainConfig.from_mapping({**BASE, **options, "batch_size": size, "processes": number})
    data = data(processes.rank) if callable(data) else data
    with opened(artifact, read_manifest(artifact), config, data, val, processes) as start:
        made = train(start.session, start.data, start.val, config, directory, progress, resume=resume)
        return made, start.session.parameters


def pair(artifact, directory, options, **more):
    return together(2, lambda processes: made(artifact, directory, options, processes, **more))


def table(directory):
    with (directory / "results.csv").open() as file:
        return list(csv.reader(file))


def require_ended_well(results):
    for result in results:
        if isinstance(result, BaseException):
            raise result


def assert_near(found, expected):
    """Equal but for the order of sums, in every line and weight."""
    head, *lines = table(expected)
    own_head, *own = table(found)
    assert own_head == head
    numbers = lambda rows: np.array([[float(n or "nan") for n in row] for row in rows])  # noqa: E731
    np.testing.assert_allclose(numbers(own), numbers(lines), rtol=2e-5, atol=1e-7)
    for name in ("best", "last"):
        ours, theirs = (load_file(d / "weights" / f"{name}.safetensors") for d in (found, expected))
        for key, value in theirs.items():
            assert np.linalg.norm(ours[key] - value) <= 1e-5 * np.linalg.norm(value), key


CODE = """
import numpy as np
rng = np.random.default_rng(0)
image, labels = rng.normal(size=(45, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 45)
batches = [{"image": image[i : i + 16], "labels": labels[i : i + 16]} for i in range(0, 45, 16)]
"""
CASES = {
    "plain": ({}, DATA),
    "everything that happens between sums": (
        {"accumulate": 3, "clip_norm": 0.5, "clip_value": 0.1, "ema": 0.9, "schedule": "cosine", "warmup": 0.1}, DATA,
    ),
    "split and balance": ({"split": 0.3, "balance": True}, DATA),
    "sample weights": ({}, WEIGHTED),
    "stopped early": ({"epochs": 9, "lr": 1e-9, "patience": 2, "metric": "accuracy"}, DATA),
    "batches of code": ({}, "code"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_with_half_the_batch_make_the_run_of_one(case, digits_artifact, tmp_path):
    options, data = CASES[case]
    if data == "code":
        (tmp_path / "code.py").write_text(CODE)
        data = f"{tmp_path / 'code.py'}:batches"
    val = pictures(30, 1) if "split" not in options else None
    seen = [Shown(), Shown(), Shown()]
    one, parameters = made(digits_artifact, tmp_path / "one", options, data=data, val=val, progress=seen[2])

    def work(processes):
        return made(
            digits_artifact, tmp_path / "two", options, processes, data=data, val=val, progress=seen[processes.rank]
        )

    results = together(2, work)
    require_ended_well(results)
    (first, own), (second, other) = results
    assert_near(tmp_path / "two", tmp_path / "one")
    for name in parameters:
        assert own[name].tobytes() == other[name].tobytes()
    assert (first.process, second.process) == (0, 1)
    assert (first.end, first.epochs, first.best_epoch) == (one.end, one.epochs, one.best_epoch)
    assert second.after == first.after
    assert first.after == pytest.approx(one.after, rel=2e-5)
    assert [s.rows for s in seen] == [seen[2].rows, 0, seen[2].rows]  # the second shows nothing
    log = (tmp_path / "two" / "train.log").read_text()
    assert "batch size 8 in each of 2 processes" in log
    assert "rounded updates differently" not in log


class AskedInTheSecond:
    """Ctrl-C that only the second process hears, in its fifth update."""

    def __init__(self, *, terminated=False):
        assert terminated
        self._left = 5

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @property
    def asked(self):
        self._left -= 1
        return threading.current_thread().name == "process 1" and self._left == 0


def test_an_interrupt_of_one_ends_both_and_both_go_on(digits_artifact, tmp_path, monkeypatch):
    require_ended_well(pair(digits_artifact, tmp_path / "whole", {"ema": 0.9}))
    with monkeypatch.context() as patch:
        patch.setattr("onnxft.training.loop.Interrupt", AskedInTheSecond)
        results = pair(digits_artifact, tmp_path / "stopped", {"ema": 0.9})
    require_ended_well(results)
    assert [r.end for r, _ in results] == ["interrupted"] * 2
    assert [r.epochs for r, _ in results] == [0, 0]
    require_ended_well(pair(digits_artifact, tmp_path / "stopped", {"ema": 0.9}, resume=True))
    for name in ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_number_of_processes_cannot_go_on(digits_artifact, tmp_path):
    require_ended_well(pair(digits_artifact, tmp_path / "two", {"epochs": 1}))
    with pytest.raises(ConfigError, match=r"processes is 2, but this one was started alone\. Start with mpirun -n 2"):
        run(digits_artifact, DATA, run_dir=tmp_path / "two", resume=True)
    with pytest.raises(ConfigError, match="begun with processes 2, and --resume cannot go on with processes 1"):
        run(digits_artifact, DATA, {"processes": 1}, run_dir=tmp_path / "two", resume=True)


def test_weights_to_begin_with_are_read_by_the_first_alone(digits_artifact, tmp_path):
    require_ended_well(pair(digits_artifact, tmp_path / "a", {"epochs": 1}))
    options = {"epochs": 1, "weights": str(tmp_path / "a")}
    made(digits_artifact, tmp_path / "one", options)
    require_ended_well(pair(digits_artifact, tmp_path / "two", options))
    assert_near(tmp_path / "two", tmp_path / "one")


def other_data(rank):
    return {**DATA, "image": DATA["image"] + np.float32(rank)}


def bad_label_in_the_second_share(tmp_path):
    """Of the last batch, which has 13 rows."""
    spoiled = CODE + "batches[2]['labels'][10] = 77\n"
    (tmp_path / "bad.py").write_text(spoiled)
    return f"{tmp_path / 'bad.py'}:batches"


def full_disk(*given):
    raise WriteError("f", "full", "All is whole.")


@pytest.mark.parametrize(
    ("fault", "kind", "first", "second"),
    [
        ("data", DataError, "process 1 of 2 has another 'data' than process 0", "process 1 of 2 has another 'data'"),
        ("label", DataError, "process 1 of 2: 'labels' has the value 77 at row 10", "'labels' has the value 77"),
        ("lr", DivergedError, "the loss is ", "process 0 of 2: the loss is"),
        ("val", DataError, "all rows of", "process 0 of 2: all rows of"),
        ("disk", WriteError, "'f' cannot be written: full.", "process 0 of 2: 'f' cannot be written"),
        ("directory", ConfigError, "exists already", "process 0 of 2: "),
    ],
)
def test_what_ends_one_ends_both(fault, kind, first, second, digits_artifact, tmp_path, monkeypatch):
    options, more = {}, {}
    match fault:
        case "data":
            more["data"] = other_data
        case "label":
            more = {"data": bad_label_in_the_second_share(tmp_path), "val": DATA}
        case "lr":
            options["lr"] = 1e30
        case "val":
            more["val"] = {**DATA, "sample_weights": np.zeros(75)}
        case "disk":
            monkeypatch.setattr(Records, "save_epoch", full_disk)
        case "directory":
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "mine.txt").write_text("mine")
    errors = pair(digits_artifact, tmp_path / "run", options, **more)
    for error, text in zip(errors, (first, second), strict=True):
        assert isinstance(error, kind), error
        assert text in str(error)
    assert [error.told for error in errors] == [False, True]
    if fault == "directory":
        assert [f.name for f in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_too_few_rows_for_all_processes(digits_artifact, tmp_path):
    errors = pair(digits_artifact, tmp_path / "run", {}, data=pictures(11, 0))
    assert "has 11 rows, fewer than the batch size 16 of 2 processes together. Use --batch-size 5" in str(errors[0])


def test_processors_that_round_otherwise_go_on_from_the_first(digits_artifact, tmp_path, monkeypatch):
    """An update that comes out otherwise in the second process is found at the end of the epoch."""
    from onnxft.runtime.shared import SharedEngine

    update, shown = SharedEngine.update, Shown()

    def rounded(self, *given):
        update(self, *given)
        if self._processes.rank:
            self.set_parameters({n: v * np.float32(1 + 1e-6) for n, v in self.parameters().items()})

    monkeypatch.setattr(SharedEngine, "update", rounded)

    def work(processes):
        progress = shown if processes.rank == 0 else None
        return made(digits_artifact, tmp_path / "run", {"epochs": 1}, processes, progress=progress)

    results = together(2, work)
    require_ended_well(results)
    (_, own), (_, other) = results
    assert any("rounded updates differently" in note for note in shown.notes)
    for name, value in own.items():
        assert value.tobytes() == other[name].tobytes()


def test_the_range_test_is_made_by_one(digits_artifact, tmp_path):
    with pytest.raises(ConfigError, match="the range test is done by one process, not 2"):
        find_lr(digits_artifact, DATA, {"processes": 2}, directory=tmp_path / "lr")


def test_processes_must_be_a_number():
    with pytest.raises(ConfigError, match="processes is 0, it must be at least 1"):
        run(None, None, {"processes": 0})
    with pytest.raises(ConfigError, match="processes"):
        run(None, None, {"processes": "many"})
