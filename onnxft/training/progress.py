"""What a run shows while it runs: a bar in a terminal, a line an epoch elsewhere, nothing in a library call."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class Progress:
    """Shows nothing; the base of those that do. A context manager around the loop."""

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """An epoch (1 for the first) of `batches` batches starts, `done` of them already made before a resume."""

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """An update was made from `batches` batches with `rows` rows and the mean loss."""

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """An epoch (0: before training) was evaluated; `row` is its line in results.csv."""

    def say(self, note: str) -> None:
        """A line that stays: the wish to stop, a last short batch left out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to release."""


class LineProgress(Progress):
    """One plain line an epoch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`, stderr if None."""
        self._stream = stream or sys.stderr
        self._epochs = 0
        self._rows = 0
        self._start = 0.0

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Start counting."""
        self._epochs, self._rows, self._start = epochs, 0, time.perf_counter()

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Count rows."""
        self._rows += rows

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """The line of an epoch."""
        values = "  ".join(f"{k} {number(v)}" for k, v in row.items() if k not in ("epoch", "step") and v == v)
        if row["epoch"] == 0:
            self.say(f"before training  {values}")
            return
        speed = self._rows / max(time.perf_counter() - self._start, 1e-9)
        self.say(f"epoch {row['epoch']}/{self._epochs}  {values}  {speed:.0f} samples/s{_memory()}")

    def say(self, note: str) -> None:
        """Write a line."""
        print(note, file=self._stream, flush=True)


class BarProgress(LineProgress):
    """A bar for the epoch in progress over the lines of those that are done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Draw on `stream`, stderr if None."""
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TextColumn("eta"), TimeRemainingColumn(compact=True),
            console=Console(file=self._stream), transient=True,
        )  # fmt: skip
        self._task: Any = None

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Draw an empty bar."""
        super().begin_epoch(epoch, epochs, batches, done)
        self._task = self._bar.add_task(f"epoch {epoch}/{epochs}", total=batches, completed=done, facts="")

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Move the bar."""
        super().step(batches, rows, loss, lr)
        speed = self._rows / max(time.perf_counter() - self._start, 1e-9)
        facts = f"loss {number(loss)} lr {lr:.1e} {speed:.0f} samples/s{_memory()}"
        self._bar.update(self._task, advance=batches, facts=facts)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Put the epoch's line in place of its bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        super().end_epoch(row)

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


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not tell (only Linux does, as a file)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()


def _memory() -> str:
    size = resident_bytes()
    return "" if size is None else f" rss {size / 1e9:.1f} GB"
