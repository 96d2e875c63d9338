"""The pictures of a report: step times, throughput against memory, operators, and the course of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxft.benchmark.operators import profile
from onnxft.benchmark.picture import WIDTH, Plot, label_points, legend, plain_numbers, side_colors
from onnxft.benchmark.points import points, step_word, time_unit
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.svg import COLORS, MARKERS, draw, short
from onnxft.benchmark.sweep_plots import sweep

_TIMES_SHOWN = 2400
_LINEAR_UP_TO = 12
_OPERATORS_SHOWN = len(COLORS) - 1


def plots(report: Report) -> tuple[Plot, ...]:
    """Those for which the report has something to show; the course of a sweep first."""
    # The times of a sweep are a long list: they stand last.
    rest = (
        throughput(report, "peak_rss_bytes", "resident memory"),
        throughput(report, "peak_gpu_bytes", "GPU memory"),
        operators(report),
    )
    times = (step_times(report),)
    drawn = (*sweep(report), *rest, *times) if len(points(report)) > 1 else (*times, *rest)
    return tuple(plot for plot in drawn if plot is not None)


def step_times(report: Report) -> Plot | None:
    """Every row's raw times on a common axis, with median, p5 to p95 and floor."""
    rows = [row for row in report.rows if row.measurement and row.summary]
    if not rows:
        return None
    unit, scale = time_unit(report)
    several = len(points(report)) > 1
    most = max(40, _TIMES_SHOWN // len(rows))
    jitter = np.random.default_rng(0).uniform(-0.27, 0.27, size=most)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            assert row.measurement is not None  # as rows without are left out
            times = scale * _thinned(np.asarray(row.measurement.step_seconds), most)
            color = side_colors(report)[row.side.name]
            axes.plot(times, y + jitter[: len(times)], "o", color=color, markersize=3, alpha=0.5, markeredgewidth=0)
            low, middle, high = np.percentile(scale * np.asarray(row.measurement.step_seconds), [5, 50, 95])
            axes.plot([low, high], [y, y], color=color, linewidth=1.6)
            axes.plot([middle, middle], [y - 0.36, y + 0.36], color=color, linewidth=2.6)
            if row.floor:
                axes.plot(scale * row.floor.seconds, y, "|", color=color, markersize=11, markeredgewidth=1, alpha=0.8)
        axes.set_yticks(range(len(rows)), [_name(report, row) if several else short(row.side.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{unit} a {step_word(report)}")
        medians = [row.summary.p50 for row in rows if row.summary]
        if max(medians) > _LINEAR_UP_TO * min(medians):
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)
        else:
            axes.set_xlim(left=0)

    thinned = any(row.summary and row.summary.count > most for row in rows)
    floors = " Thin mark: the floor." if any(row.floor for row in rows) else ""
    caption = f"A dot is a {step_word(report)}; thick bar: median; line: p5 to p95." + floors
    if thinned:
        caption += f" Of each side {most} dots are drawn, evenly over its sorted times."
    if several:
        caption = f"Side · batch × threads. {caption}"
    height = max(2.2, 0.9 + (0.3 if several else 0.42) * len(rows))
    svg = draw("times", "Step times of every side", (WIDTH, height), paint)
    return Plot("Step times", caption, svg)


def throughput(report: Report, memory: str, words: str) -> Plot | None:
    """Samples per second against a peak memory of the measurement."""
    rows = [row for row in report.rows if row.summary and getattr(row.measurement, memory, None)]
    if not rows:
        return None
    several = len(points(report)) > 1
    sides = list(side_colors(report))
    places = [(getattr(r.measurement, memory) / 1e6, r.summary.samples_per_second) for r in rows if r.summary]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for row, (x, y) in zip(rows, places, strict=True):
            marker = MARKERS[sides.index(row.side.name) % len(MARKERS)]
            color = side_colors(report)[row.side.name]
            axes.plot(x, y, marker, color=color, markersize=7, alpha=0.85, markeredgewidth=0)
        axes.set_xlabel(f"peak {words}, MB")
        axes.set_ylabel("samples a second")
        # Room for the names, which stand beside the points.
        axes.set_xlim(0, max(x for x, _ in places) * (1.1 if several else 1.3))
        speeds = [y for _, y in places]
        if max(speeds) > _LINEAR_UP_TO * min(speeds):
            axes.set_yscale("log")
            axes.set_ylim(min(speeds) / 1.6, max(speeds) * 1.6)
            plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(0, max(speeds) * 1.15)
        if not several:
            label_points(figure, axes, [(*at, short(r.side.name)) for r, at in zip(rows, places, strict=True)])

    title = f"Throughput and {words}"
    svg = draw(words.replace(" ", ""), f"Samples a second against {words}", (WIDTH, 3.2), paint)
    return Plot(title, "Further up is faster, further left is smaller.", svg, legend(report, rows) if several else ())


def operators(report: Report) -> Plot | None:
    """Where a step's time goes."""
    found = profile(report, _OPERATORS_SHOWN)
    if found is None:
        return None
    rows, bars = found.rows, found.seconds
    unit, scale = time_unit(report)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        left = np.zeros(len(rows))
        for (_, seconds), color in zip(bars, COLORS, strict=False):
            wide = scale * np.asarray(seconds)
            axes.barh(range(len(rows)), wide, left=left, color=color, height=0.62)
            left += wide
        axes.set_yticks(range(len(rows)), [short(row.side.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{unit} a {step_word(report)}")

    caption = "By the runtime's own profile" + (f", {found.where}." if found.where else ".")
    svg = draw("operators", "Time per operator", (WIDTH, 0.9 + 0.42 * len(rows)), paint)
    return Plot("Time per operator", caption, svg, tuple((n, c) for (n, _), c in zip(bars, COLORS, strict=False)))


def _name(report: Report, row: Row) -> str:
    where = row.point
    return f"{short(row.side.name)} · {where.batch_size} × {where.threads}"


def _thinned(times: np.ndarray[Any, np.dtype[np.float64]], most: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """At most so many, evenly over the sorted ones, both ends kept."""
    if len(times) <= most:
        return times
    return np.asarray(np.sort(times)[np.linspace(0, len(times) - 1, most).round().astype(int)])
