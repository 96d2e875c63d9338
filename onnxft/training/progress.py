"""What a run shows while it runs: a bar in a terminal, a line an epoch elsewhere, nothing in a library call."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TextIO

from onnxft.memory import resident_bytes


class Progress:
    """Shows nothing; the base of those that do. A context manager around the loop."""

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """An epoch (1 for the first) of `batches` batches starts, `done` of them already made before a resume."""

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """An update was made from `batches` batches with `rows` rows and the mean loss."""

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """An epoch (0: before training) was evaluated and is about to be saved; `row` is its line in results.csv."""

    def begin_task(self, words: str, total: int) -> None:
        """Something else than an epoch starts, which has so many parts."""

    def advance(self, parts: int) -> None:
        """So many of them are done."""

    def end_task(self) -> None:
        """It is over."""

    def say(self, note: str) -> None:
        """A line that stays: the wish to stop, a last short batch left out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to release."""


class Several(Progress):
    """Tells each of several."""

    def __init__(self, *parts: Progress) -> None:
        """Tell `parts`, in this order."""
        self._parts = parts
        self._open = ExitStack()

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Tell each."""
        for part in self._parts:
            part.begin_epoch(epoch, epochs, batches, done)

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Tell each."""
        for part in self._parts:
            part.step(batches, rows, loss, lr)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Tell each."""
        for part in self._parts:
            part.end_epoch(row)

    def begin_task(self, words: str, total: int) -> None:
        """Tell each."""
        for part in self._parts:
            part.begin_task(words, total)

    def advance(self, parts: int) -> None:
        """Tell each."""
        for part in self._parts:
            part.advance(parts)

    def end_task(self) -> None:
        """Tell each."""
        for part in self._parts:
            part.end_task()

    def say(self, note: str) -> None:
        """Tell each."""
        for part in self._parts:
            part.say(note)

    def __enter__(self) -> Self:
        for part in self._parts:
            self._open.enter_context(part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave each, the last one first."""
        self._open.__exit__(kind, value, trace)


class LineProgress(Progress):
    """One plain line an epoch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`, stderr if None."""
        self._stream = stream or sys.stderr
        self._epoch = self._epochs = self._batches = self._done = 0
        self._made = self._rows = 0
        """Batches and rows of this epoch that were made here, not before a resume."""
        self._start = self._last = time.perf_counter()
        """When the first of them began and the last one ended."""
        self._between = 0.0
        """Seconds of the last evaluation."""

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Start counting."""
        self._epoch, self._epochs, self._batches, self._done = epoch, epochs, batches, done
        self._made = self._rows = 0
        self._start = self._last = time.perf_counter()

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Count batches and rows."""
        self._made += batches
        self._rows += rows
        self._last = time.perf_counter()

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """The line of an epoch."""
        self._between = time.perf_counter() - self._last
        values = "  ".join(f"{k} {number(v)}" for k, v in row.items() if k not in ("epoch", "step") and v == v)
        if row["epoch"] == 0:
            self.say(f"before training  {values}")
            return
        left = f" left {clock(self._seconds_after())}" if self._made and self._epoch < self._epochs else ""
        self.say(f"epoch {row['epoch']}/{self._epochs}  {values} {self._speed()}{_memory()}{left}")

    def _speed(self) -> str:
        return f" {self._rows / max(self._last - self._start, 1e-9):.0f} samples/s" if self._made else ""

    def _seconds_of_epoch(self) -> float:
        """Left of the epoch in progress, as fast as the batches made so far."""
        return (self._last - self._start) / self._made * (self._batches - self._done - self._made)

    def _seconds_after(self) -> float:
        """Of the epochs after this one, each with its evaluation."""
        whole = (self._last - self._start) / self._made * self._batches
        return (self._epochs - self._epoch) * (whole + self._between)

    def say(self, note: str) -> None:
        """Write a line."""
        print(note, file=self._stream, flush=True)


class BarProgress(LineProgress):
    """A bar for the epoch in progress over the lines of those that are done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Draw on `stream`, stderr if None."""
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        whole = Column(no_wrap=True)
        self._bar = RichProgress(
            TextColumn("{task.description}", table_column=whole),
            BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=40, ratio=1)),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[facts]}", table_column=whole),
            console=Console(file=self._stream), transient=True, expand=True,
        )  # fmt: skip
        self._task: Any = None

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Draw an empty bar."""
        super().begin_epoch(epoch, epochs, batches, done)
        self._task = self._bar.add_task(f"epoch {epoch}/{epochs}", total=batches, completed=done, facts="")

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Move the bar."""
        super().step(batches, rows, loss, lr)
        epoch = self._seconds_of_epoch()
        left = f" eta {clock(epoch)} run {clock(epoch + self._between + self._seconds_after())}"
        facts = f"loss {number(loss)} lr {lr:.1e}{self._speed()}{_memory()}{left}"
        self._bar.update(self._task, advance=batches, facts=facts)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Put the epoch's line in place of its bar."""
        self.end_task()
        super().end_epoch(row)

    def begin_task(self, words: str, total: int) -> None:
        """Draw an empty bar."""
        self._task = self._bar.add_task(words, total=total, facts="")

    def advance(self, parts: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, advance=parts)

    def end_task(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def say(self, note: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(note, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._bar.stop()


def progress_for(stream: TextIO | None = None) -> Progress:
    """A bar where `stream` (stderr if None) is a terminal, else lines."""
    stream = stream or sys.stderr
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


def number(value: float) -> str:
    """Four significant digits, whole numbers as they are."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Minutes and seconds, from an hour on with the hours.

    >>> clock(75.4), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _memory() -> str:
    size = resident_bytes()
    if size is None:
        return ""
    return f" rss {size / 1e9:.1f} GB" if size >= 1e9 else f" rss {size / 1e6:.0f} MB"
