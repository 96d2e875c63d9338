"""The course of a sweep: step time and memory over what varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnxft.benchmark.picture import WIDTH, Plot, legend, plain_numbers, side_colors
from onnxft.benchmark.points import time_unit
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.svg import FAINT, MARKERS, draw


def sweep(report: Report) -> tuple[Plot, ...]:
    """Step time and memory against batch size and against threads, those that vary."""
    unit, scale = time_unit(report)
    rows = [row for row in report.rows if row.measurement and row.summary]

    def time(row: Row) -> float | None:
        return scale * row.summary.p50 if row.summary else None

    def memory(row: Row) -> float | None:
        return row.measurement.peak_rss_bytes / 1e6 if row.measurement and row.measurement.peak_rss_bytes else None

    made = []
    for varied, fixed, power, words in (
        ("batch_size", "threads", 1, "batch size"),
        ("threads", "batch_size", -1, "threads"),
    ):
        if len({getattr(row.point, varied) for row in rows}) < 2:
            continue
        for name, value, label, guide in (
            ("Step time", time, f"p50, {unit}", power),
            ("Peak memory", memory, "peak memory, MB", max(power, 0)),
        ):
            panels = _panels(report, rows, varied, fixed, value)
            if panels:
                made.append(_course(report, f"{name} against {words}", label, words, panels, guide))
    return tuple(made)


_Series = dict[str, list[tuple[int, float]]]


def _panels(
    report: Report, rows: Sequence[Row], varied: str, fixed: str, value: Callable[[Row], float | None]
) -> dict[str, _Series]:
    """{what is fixed: {side: [(x, y)]}}"""
    found: dict[int, _Series] = {}
    for row in rows:
        where, y = row.point, value(row)
        if y is not None:
            series = found.setdefault(getattr(where, fixed), {})
            series.setdefault(row.side.name, []).append((getattr(where, varied), y))
    words = {"threads": "{} thread{}", "batch_size": "batch {}"}[fixed]
    return {words.format(at, "" if at == 1 else "s"): found[at] for at in sorted(found)}


def _course(report: Report, title: str, label: str, words: str, panels: dict[str, _Series], power: int) -> Plot:
    """Log-log, one panel for each fixed value; dashed is y ∝ x^power through the first point of the slowest side."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    guide = {"color": FAINT, "linewidth": 1, "zorder": 0}
    across = min(2, len(panels))
    down = -(-len(panels) // across)

    def paint(figure: Any) -> None:
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        ticks = sorted({x for series in panels.values() for places in series.values() for x, _ in places})
        heights = [y for series in panels.values() for places in series.values() for _, y in places]
        for axes, (name, series) in zip(grid.flat, panels.items(), strict=False):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(name)
            for side, places in series.items():
                marker = MARKERS[list(side_colors(report)).index(side) % len(MARKERS)]
                places = sorted(places)
                axes.plot(*zip(*places, strict=True), color=side_colors(report)[side], marker=marker, markersize=4)
            x, y = max((min(places) for places in series.values()), key=lambda place: place[1])
            if power:
                axes.plot(ticks, [y * (t / x) ** power for t in ticks], "--", **guide)
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(min(heights) / 1.25, max(heights) * 1.25)
            plain_numbers(axes.yaxis)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel(words, fontsize=9)
        figure.supylabel(label, fontsize=9)

    dashed = {1: " Dashed: in proportion.", -1: " Dashed: n threads, n times as fast."}.get(power, "")
    rows = [row for row in report.rows if any(row.side.name in series for series in panels.values())]
    identifier = "".join(c for c in title if c.isalpha())
    svg = draw(identifier, title, (WIDTH, 0.8 + 1.9 * down), paint)
    return Plot(title, f"Both axes logarithmic.{dashed}", svg, legend(report, rows))
