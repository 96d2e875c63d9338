"""What a report is about: the points of its sweep, the unit of its times."""

from __future__ import annotations

from onnxft.benchmark.config import Point
from onnxft.benchmark.report import Report, Row


def step_word(report: Report) -> str:
    """What one measured time belongs to."""
    return "step" if report.config.trains else "batch"


def compared_word(report: Report) -> str:
    """What is compared of every side besides the loss: a gradient of each parameter, or each output."""
    return "gradient" if report.config.trains else "output"


def points(report: Report) -> dict[Point, tuple[Row, ...]]:
    """{point: its rows}, one point without a sweep."""
    found: dict[Point, tuple[Row, ...]] = {}
    for row in report.rows:
        found[row.point] = (*found.get(row.point, ()), row)
    return found


def time_unit(report: Report) -> tuple[str, float]:
    """The unit of all step times of a report, and how many of it a second has."""
    medians = [row.summary.p50 for row in report.rows if row.summary] or [0.01]
    if min(medians) >= 1:
        return "s", 1.0
    return ("µs", 1e6) if max(medians) < 1e-3 else ("ms", 1e3)
