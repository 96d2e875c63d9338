"""What the pictures of a report have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.svg import COLORS, FAINT

WIDTH = 4.8
"""Inches; the page scales."""


@dataclass(frozen=True)
class Plot:
    """A picture with its words."""

    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    """(name, colour)"""


def side_colors(report: Report) -> dict[str, str]:
    """{side: its colour in every picture}"""
    names = dict.fromkeys(row.side.name for row in report.rows)
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}


def legend(report: Report, rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    """Of the sides of these rows."""
    return tuple((name, side_colors(report)[name]) for name in dict.fromkeys(row.side.name for row in rows))


def plain_numbers(axis: Any) -> None:
    """Of a logarithmic axis: numbers without powers, few enough to stand beside each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    subs = (1, 2, 3, 5) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))


def label_points(figure: Any, axes: Any, named: Sequence[tuple[float, float, str]]) -> None:
    """Name each point at the first place around it that is free."""
    figure.draw_without_rendering()
    pixels = [axes.transData.transform((x, y)) for x, y, _ in named]
    unit = figure.dpi / 72
    taken = [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in pixels]
    for (x, y, name), (left, bottom) in zip(named, pixels, strict=True):
        wide, high = 5.2 * len(name) * unit, 11 * unit
        for dx, dy, align in _OFFSETS:
            start = left + dx * unit - {"left": 0, "center": wide / 2, "right": wide}[align]
            box = (start, bottom + dy * unit - high / 2, start + wide, bottom + dy * unit + high / 2)
            inside = axes.bbox.x0 <= box[0] and box[2] <= figure.bbox.x1
            free = inside and not any(_overlap(box, other) for other in taken)
            if free:
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7} if abs(dy) > 10 else None
        place = {"textcoords": "offset points", "ha": align, "va": "center", "fontsize": 8.5}
        axes.annotate(name, (x, y), (dx, dy), arrowprops=line, **place)


_OFFSETS = [
    (8 * side, dy, align)
    for dy in (0, 10, -10, 20, -20, 30, -30)
    for side, align in ((1, "left"), (-1, "right"), (0, "center"))
    if (side, dy) != (0, 0)
]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
