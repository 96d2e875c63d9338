"""The report of `scaling.py`, as Markdown and as a page: what grows how, and picture and points of each axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scaling_course import NEAR, TAIL, Axis, Course, Point, courses
from scaling_fit import LEAST_GROWTH
from scaling_plots import picture

from onnxft.benchmark import page
from onnxft.benchmark.markdown import escape, table_text
from onnxft.benchmark.picture import Plot
from onnxft.benchmark.table import NONE, Column, Line, Table
from onnxft.benchmark.units import digits, scientific

Measured = Mapping[str, Sequence[Point]]
"""{axis: its points}"""
INTRODUCTION = (
    "Step time and peak memory against one size at a time. Each point is a process of its own, with the first step and "
    "the warm-up left out; times are medians.",
    "The slope is that of log time over log size, by least squares: 1 is linear. 'At the end' is that of the "
    f"{TAIL} largest points, which decide, since what a step takes at any size hides the growth before. 'Of the work' "
    "is the larger of those of the model's multiplications and of the bytes of its other operators, at the end too. "
    f"Near linear is a slope of at most {1 + NEAR:g}, as its work one of at most {NEAR:g} above that of the work.",
    "Attention multiplies every token of a text with every other: its part of time and memory is quadratic in the "
    "sequence length by nature, the rest is linear, so that the slope over lengths lies between 1 and 2.",
    "Fixed memory is the intercept of a line through the peaks over the size, of a parabola over sequence length. It "
    "is subtracted before what a row, a pixel, a layer, a block or a token takes is told. 'Off the line' is the "
    f"furthest point, as a part of the growth (or of {LEAST_GROWTH:.0%} of the peak, where that is more); near linear "
    f"is at most {NEAR:.0%}, with an intercept that is not negative.",
)


def markdown(axes: Mapping[str, Axis], measured: Measured) -> str:
    """The document; pictures are in files `AXIS.svg` beside it."""
    found = _found(axes, measured)
    parts = ["# Scaling", *map(escape, INTRODUCTION), table_text(growth(found))]
    for name, of_axis in found.items():
        axis, points = axes[name], measured[name]
        parts += [f"## {escape(axis.title)}", escape(where(points))]
        parts += [f"![{escape(axis.title)}]({name}.svg)", table_text(steps(axis, of_axis))] if of_axis else []
        failed = list(failures(points))
        parts += ["Not measured:", "\n".join(f"- {escape(line)}" for line in failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def html(axes: Mapping[str, Axis], measured: Measured) -> str:
    """The page, pictures inside; ConfigError where matplotlib is missing."""
    found = _found(axes, measured)
    lead = [f"<p class=meta>{page.escape(line)}</p>" for line in INTRODUCTION]
    parts = [page.section(growth(found))]
    for name, of_axis in found.items():
        axis, points = axes[name], measured[name]
        parts += [f"<h2>{page.escape(axis.title)}</h2>", f"<p class=meta>{page.escape(where(points))}</p>"]
        if of_axis:
            caption = (
                "Bars: p5 to p95. Dashed above: in proportion to the size"
                f"{', dotted: to its square' if axis.degree > 1 else ''}. Dashed below: what was fitted."
            )
            parts += [page.figures([Plot("Step time and memory", caption, picture(axis, of_axis))])]
            parts += [page.fold("Every point", page.grid(steps(axis, of_axis)))]
        failed = list(failures(points))
        parts += [page.fold("Not measured", page.items(failed), open_=True)] if failed else []
    return page.document("Scaling", "onnxft", "tools/scaling.py", lead, parts)


def _found(axes: Mapping[str, Axis], measured: Measured) -> dict[str, list[Course]]:
    return {name: courses(axes[name], points) for name, points in measured.items()}


def growth(found: Mapping[str, Sequence[Course]]) -> Table:
    """A line for each axis, method and side."""
    columns = (
        Column("Trained", words=True), Column("Side", words=True), Column("Slope"), Column("At the end"),
        Column("Of the work"), Column("Time grows", words=True), Column("Fixed memory", "MB"),
        Column("Off the line"), Column("Memory grows", words=True),
    )  # fmt: skip
    lines = []
    for course in (course for of_axis in found.values() for course in of_axis):
        line = course.memory_line
        cells = (
            course.method, course.side, _slope(course.exponent), _slope(course.exponent_at_end),
            _slope(course.exponent_of_work), course.time_verdict, digits(line.fixed / 1e6) if line else NONE,
            f"{line.off:.1%}" if line else NONE, course.memory_verdict,
        )  # fmt: skip
        lines.append(Line(cells, failed=not course.as_expected, group=course.axis.title))
    return Table("Growth", columns, tuple(lines))


def _slope(value: float | None) -> str:
    return NONE if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def steps(axis: Axis, of_axis: Sequence[Course]) -> Table:
    """A line for each size."""
    columns = (
        Column("Trained", words=True), Column("Side", words=True), Column("Size"), Column("p50", "ms"),
        Column("p5 to p95", "ms"), Column("Time", f"ms a {axis.unit}"), Column("First step", "s"), Column("Peak", "MB"),
        Column("Above the fixed", f"kB a {axis.unit}"), Column("max Δ", "gradient"),
    )  # fmt: skip
    return Table(f"Points: {axis.title}", columns, tuple(line for course in of_axis for line in _lines(course)))


def _lines(course: Course) -> Iterator[Line]:
    fitted = course.memory_line
    points = zip(course.sizes, course.units, course.rows, course.seconds, course.spreads, strict=True)
    for size, units, row, seconds, (low, high) in points:
        assert row.measurement is not None  # a course leaves out what did not run
        peak = row.measurement.peak_rss_bytes
        yield Line((
            course.method, course.side, f"{size}", digits(1e3 * seconds),
            f"{digits(1e3 * low)} to {digits(1e3 * high)}", digits(1e3 * seconds / units),
            digits(row.measurement.first_step_seconds),
            NONE if peak is None else digits(peak / 1e6),
            NONE if peak is None or fitted is None else digits((peak - fitted.fixed) / units / 1e3),
            scientific(row.numerics.gradient_difference) if row.numerics else NONE,
        ))  # fmt: skip


def where(points: Sequence[Point]) -> str:
    """The machine and the packages, of which sides may have several versions; empty where nothing ran."""
    reports = [point.report for point in points if point.report is not None]
    found = (row.measurement.versions for report in reports for row in report.rows if row.measurement is not None)
    versions: dict[str, set[str]] = {}
    for name, version in (item for of_side in found for item in of_side.items()):
        versions.setdefault(name, set()).add(version)
    packages = [f"{name} {' and '.join(sorted(versions[name]))}" for name in sorted(versions)]
    machine = [f"{r.device.cpu}, {r.device.threads} threads, {r.started}" for r in reports[:1]]
    return ", ".join([*machine, *packages])


def failures(points: Sequence[Point]) -> Iterator[str]:
    """What has no numbers, and why."""
    for point in points:
        at = f"{point.method}, {point.size}"
        if point.reason is not None:
            yield f"{at}: {_short(point.reason)}"
        for row in point.report.rows if point.report is not None else ():
            if row.reason is not None:
                yield f"{at}, {row.side.name}: {_short(row.reason)}"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
