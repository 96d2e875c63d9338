from __future__ import annotations

import io
import math
import struct

import pytest

from onnxft.training.curves import can_plot, panels, plot_curves
from onnxft.training.progress import BarProgress, LineProgress, Progress, Several, clock, number, progress_for


class Terminal(io.StringIO):
    def isatty(self):
        return True


ROW = {"epoch": 1, "step": 4, "lr": 3e-4, "loss": 0.41234, "val_loss": 0.5, "val_auc": float("nan")}


def show(progress):
    with progress:
        progress.end_epoch({"epoch": 0, "step": 0, "lr": float("nan"), "loss": float("nan"), "val_loss": 2.25})
        progress.begin_epoch(1, 2, 4, 0)
        for _ in range(2):
            progress.step(2, 10, 0.41234, 3e-4)
        progress.end_epoch(ROW)
        progress.say("a [note] that stays")


@pytest.mark.parametrize(("stream", "kind"), [(io.StringIO(), LineProgress), (Terminal(), BarProgress)])
def test_a_bar_only_in_a_terminal(stream, kind):
    assert type(progress_for(stream)) is kind


@pytest.mark.parametrize("kind", [LineProgress, BarProgress])
def test_the_lines_that_stay(kind):
    stream = io.StringIO()
    show(kind(stream))
    output = stream.getvalue()
    assert "before training  val_loss 2.25" in output
    assert "epoch 1/2  lr 0.0003  loss 0.4123  val_loss 0.5  " in output
    assert "samples/s" in output
    assert "a [note] that stays" in output
    assert "nan" not in output


class Clock:
    """Time as told, so that speed and time left are known."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("onnxft.training.progress.time.perf_counter", lambda: self.now)

    def __call__(self, seconds):
        self.now += seconds


def test_a_line_tells_speed_memory_and_the_time_left_of_the_run(monkeypatch):
    passes, stream = Clock(monkeypatch), io.StringIO()
    monkeypatch.setattr("onnxft.training.progress.resident_bytes", lambda: 1.44e9)
    progress = LineProgress(stream)
    progress.begin_epoch(2, 5, 10, 2)  # resumed: 2 of 10 batches were made before
    for _ in range(4):
        passes(6)
        progress.step(2, 30, 0.4, 1e-3)
    passes(10)
    progress.end_epoch({**ROW, "epoch": 2})
    # 8 batches in 24 s, so that an epoch takes 30 s and with its evaluation 40 s; 3 of them are left.
    assert stream.getvalue().endswith("  val_loss 0.5  5 samples/s rss 1.4 GB left 2:00\n")


def test_the_last_line_has_no_time_left(monkeypatch):
    passes, stream = Clock(monkeypatch), io.StringIO()
    progress = LineProgress(stream)
    progress.begin_epoch(5, 5, 10, 10)  # resumed after the last batch: there is no speed either
    passes(1)
    progress.end_epoch({**ROW, "epoch": 5})
    assert "left" not in stream.getvalue()
    assert "samples/s" not in stream.getvalue()


@pytest.mark.parametrize("columns", [80, 140])
def test_the_bar_tells_the_time_left_of_epoch_and_run(monkeypatch, columns):
    passes = Clock(monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("onnxft.training.progress.resident_bytes", lambda: 78e6)
    stream = Terminal()
    progress = BarProgress(stream)
    with progress:
        passes(10)
        progress.end_epoch({**ROW, "epoch": 0})
        progress.begin_epoch(1, 3, 10, 0)
        passes(6)
        progress.step(4, 24, 0.5, 1e-3)
        progress._bar.refresh()
    # 1.5 s a batch: 9 s of the epoch, its evaluation 10 s, then twice 25 s.
    for words in ("4/10", "loss 0.5", "4 samples/s", "rss 78 MB", "eta 0:09 run 1:09"):
        assert words in stream.getvalue(), words


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (3599.7, "1:00:00"), (93784, "26:03:04")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_several_are_told_and_left_even_after_an_error():
    class Heard(Progress):
        def __init__(self):
            self.words = []

        def step(self, batches, rows, loss, lr):
            self.words.append((batches, rows, loss, lr))

        def begin_epoch(self, *numbers):
            self.words.append(numbers)

        def end_epoch(self, row):
            self.words.append(row)

        def say(self, note):
            self.words.append(note)

        def __exit__(self, kind, value, trace):
            self.words.append(kind)

    parts = [Heard(), Heard()]
    with pytest.raises(KeyError), Several(*parts) as progress:
        progress.begin_epoch(1, 2, 3, 0)
        progress.step(1, 2, 3.0, 4.0)
        progress.end_epoch(ROW)
        progress.say("note")
        raise KeyError("x")
    for part in parts:
        assert part.words == [(1, 2, 3, 0), (1, 2, 3.0, 4.0), ROW, "note", KeyError]


def test_the_bar_shows_where_the_epoch_stands(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    progress = BarProgress(stream)
    with progress:
        progress.begin_epoch(2, 5, 400, 118)
        progress.step(2, 10, 0.41234, 3e-4)
        progress._bar.refresh()
    for words in ("epoch 2/5", "120/400", "loss 0.4123", "lr 3.0e-04", "samples/s", "eta"):
        assert words in stream.getvalue(), words


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (0.412345, "0.4123"), (1e-7, "1e-07"), (float("nan"), "nan")])
def test_number(value, text):
    assert number(value) == text


METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "auc", "mae", "rmse", "r2", "perplexity"]


def size(png):
    """(width, height), which stand in the first chunk."""
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">II", png[16:24])


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
@pytest.mark.parametrize("split", ["val", "train"])
@pytest.mark.parametrize(("metrics", "epochs"), [(0, 1), (1, 2), (4, 3), (9, 60)])
def test_curves_are_a_picture_of_at_most_four_panels_a_row(metrics, epochs, split):
    rows = [
        {
            "epoch": e, "step": e, "lr": 1e-3 if e else math.nan, "loss": 1 / e if e else math.nan,
            f"{split}_loss": 1 / (e + 1), **{f"{split}_{name}": e / epochs for name in METRICS[:metrics]},
        }
        for e in range(epochs + 1)
    ]  # fmt: skip
    png = plot_curves(rows, best_epoch=1)
    width, height = size(png)
    assert width <= 4 * 380
    assert height >= -(-(metrics + 2) // 4) * 250
    assert png != plot_curves(rows, best_epoch=0)


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
def test_a_metric_that_is_not_finite_leaves_a_gap():
    rows = [{**ROW, "epoch": e, "val_perplexity": math.inf if e == 0 else 9.0} for e in range(3)]
    assert size(plot_curves(rows, best_epoch=2))


def test_panels():
    columns = ["epoch", "step", "lr", "loss", "train_loss", "train_macro_f1", "train_auc"]
    assert panels(columns) == {
        "loss": ["loss", "train_loss"], "macro f1": ["train_macro_f1"], "auc": ["train_auc"], "learning rate": ["lr"],
    }  # fmt: skip
