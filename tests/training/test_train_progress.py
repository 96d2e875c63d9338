from __future__ import annotations

import io

import pytest

from onnxft.training.curves import can_plot, plot_curves
from onnxft.training.progress import BarProgress, LineProgress, number, progress_for


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


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
def test_curves_are_a_picture():
    rows = [{**ROW, "epoch": epoch, "val_loss": 1 / (epoch + 1)} for epoch in range(3)]
    png = plot_curves(rows, best_epoch=2)
    assert png.startswith(b"\x89PNG")
    assert png != plot_curves(rows, best_epoch=1)
