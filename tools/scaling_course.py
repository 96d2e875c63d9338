"""What `scaling.py` measures, and how time and memory grow in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from scaling_fit import Polynomial, exponent, fit

from onnxft.benchmark.report import Report, Row
from onnxft.errors import DataError

TAIL = 3
"""Points at the large end: the exponent is theirs, since what a step takes at any size hides the growth before."""
NEAR = 0.1
"""By which an exponent may lie over the expected one, and memory beside its line, as a part of its growth."""
FASTER, UNEXPECTED = "faster than its work", "not as expected"
"""Verdicts on time and on memory that are no good news."""


@dataclass(frozen=True)
class Axis:
    """What is varied, of which model."""

    name: str
    title: str
    unit: str
    """What time and memory are divided by: `row`, `pixel`."""
    kind: str
    """Of `scaling_models`."""
    sizes: tuple[int, ...]
    model_size: int | None = None
    """Where the batch is varied."""
    batch_size: int | None = None
    """Where the model or its input is varied."""
    frozen: tuple[str, ...] = ()
    power: int = 1
    """A size has so many units: size ** power."""
    degree: int = 1
    """Of the polynomial in units that memory follows: attention keeps a number for every pair of tokens."""

    def units(self, size: int) -> int:
        """Rows, tokens, pixels, layers."""
        return int(size**self.power)


@dataclass(frozen=True)
class Point:
    """One size: a report of all sides, or the reason why there is none."""

    method: str
    size: int
    report: Report | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Points:
    """What the file of an axis holds."""

    axis: str
    points: tuple[Point, ...]


def read(file: Path) -> Points:
    """DataError where something else is in it."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Points)
    except (OSError, msgspec.MsgspecError) as err:
        raise DataError(f"'{file}' holds no points of scaling.py: {err}. Measure it again.") from err


@dataclass(frozen=True)
class Course:
    """The points of one side where it ran, by size."""

    axis: Axis
    method: str
    side: str
    sizes: tuple[int, ...]
    rows: tuple[Row, ...]
    work: tuple[tuple[float, float], ...]
    """(floating-point operations, bytes of the other operators) of a step, of the model; empty where not counted."""

    @property
    def units(self) -> list[int]:
        """Of each point."""
        return [self.axis.units(size) for size in self.sizes]

    @property
    def seconds(self) -> list[float]:
        """Median steps."""
        return [row.summary.p50 for row in self.rows if row.summary is not None]

    @property
    def spreads(self) -> list[tuple[float, float]]:
        """p5 and p95 of the steps of each point, seconds."""
        steps = [row.measurement.step_seconds for row in self.rows if row.measurement is not None]
        return [(float(np.percentile(times, 5)), float(np.percentile(times, 95))) for times in steps]

    @property
    def memory(self) -> list[int]:
        """Peaks in bytes; empty where the system does not tell."""
        peaks = [row.measurement.peak_rss_bytes for row in self.rows if row.measurement is not None]
        return [peak for peak in peaks if peak is not None] if None not in peaks else []

    @property
    def exponent(self) -> float | None:
        """Of the time, over all points."""
        return exponent(self.units, self.seconds)

    @property
    def exponent_at_end(self) -> float | None:
        """Of the time, over the largest points."""
        return exponent(self.units[-TAIL:], self.seconds[-TAIL:])

    @property
    def exponent_of_work(self) -> float | None:
        """The larger of those of the model's multiplications and of the other bytes, over the largest points."""
        each = [exponent(self.units[-TAIL:], amounts) for amounts in zip(*self.work[-TAIL:], strict=True)]
        return max((e for e in each if e is not None), default=None)

    @property
    def memory_line(self) -> Polynomial | None:
        """None where there are too few points to tell."""
        return fit(self.units, self.memory, self.axis.degree) if self.memory else None

    @property
    def time_verdict(self) -> str:
        """How time grows; two points could not tell growth from noise."""
        found, work = self.exponent_at_end, self.exponent_of_work
        if found is None or len(self.sizes) < TAIL:
            return "-"
        if found <= 1 + NEAR:
            return "near linear"
        return "as its work" if work is not None and found <= work + NEAR else FASTER

    @property
    def memory_verdict(self) -> str:
        """How memory grows."""
        line = self.memory_line
        if line is None:
            return "-"
        if line.off > NEAR or line.fixed < 0:
            return UNEXPECTED
        return "near linear" if self.axis.degree == 1 else "as attention"

    @property
    def as_expected(self) -> bool:
        """Whether neither verdict is against it; what cannot be told is not."""
        return self.time_verdict != FASTER and self.memory_verdict != UNEXPECTED


def courses(axis: Axis, points: Sequence[Point]) -> list[Course]:
    """One for each method and side that ran anywhere, in the order of the points."""
    found: dict[tuple[str, str], list[tuple[Point, Row]]] = {}
    for point in sorted(points, key=lambda point: point.size):
        for row in point.report.rows if point.report is not None else ():
            if row.summary is not None:
                found.setdefault((point.method, row.side.name), []).append((point, row))
    order = list(dict.fromkeys(point.method for point in points))
    made = []
    for (method, side), pairs in sorted(found.items(), key=lambda item: order.index(item[0][0])):
        works = [point.report.work for point, _ in pairs if point.report is not None]
        work = [(w.flops, w.bytes) for w in works if w.flops and w.bytes]
        made.append(
            Course(
                axis, method, side, tuple(point.size for point, _ in pairs), tuple(row for _, row in pairs),
                tuple(work) if len(work) == len(pairs) else (),
            )
        )  # fmt: skip
    return made
