"""The picture of an axis: step time and memory of every side over the size, a column for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scaling_course import Axis, Course

from onnxft.benchmark.picture import plain_numbers
from onnxft.benchmark.svg import COLORS, FAINT, MARKERS, draw, short

SIZE = (7.2, 5.2)
"""Inches."""
GUIDE = {"color": FAINT, "linewidth": 1, "zorder": 0}


def picture(axis: Axis, of_axis: Sequence[Course]) -> str:
    """An SVG element: above the time, both axes logarithmic, below the memory with its line, both from zero on."""
    methods = list(dict.fromkeys(course.method for course in of_axis))
    sides = list(dict.fromkeys(course.side for course in of_axis))

    def style(course: Course) -> dict[str, Any]:
        i = sides.index(course.side)
        return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(methods), squeeze=False, sharex="row", sharey="row")
        for (above, below), method in zip(grid.T, methods, strict=True):
            own = [course for course in of_axis if course.method == method]
            above.set_title(method)
            _times(above, axis, own, style)
            _memory(below, axis, own, style)
        times = [1e3 * seconds for course in of_axis for spread in course.spreads for seconds in spread]
        grid[0, 0].set_ylim(min(times) / 1.5, 1.5 * max(times))  # the guides would reach further down
        plain_numbers(grid[0, 0].yaxis)
        grid[0, 0].set_ylabel("step, ms")
        grid[1, 0].set_ylim(0, 1.1 * max((peak / 1e6 for course in of_axis for peak in course.memory), default=1))
        grid[1, 0].yaxis.set_major_formatter("{x:,.0f}")
        grid[1, 0].set_ylabel("peak memory, MB")
        figure.supxlabel(axis.title, fontsize=9)
        handles = {course.side: grid[0, 0].plot([], [], **style(course))[0] for course in of_axis}
        figure.legend(
            handles.values(), map(short, handles), loc="outside upper right", ncols=len(handles), frameon=False
        )

    return draw(axis.name.replace("-", ""), f"Step time and memory: {axis.title}", SIZE, paint)


def _times(axes: Any, axis: Axis, own: Sequence[Course], style: Any) -> None:
    """Medians, p5 to p95 as bars; dashed in proportion to the size, dotted to its square where that is expected."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for course in own:
        middle, (low, high) = 1e3 * np.array(course.seconds), 1e3 * np.transpose(course.spreads)
        axes.errorbar(course.units, middle, (middle - low, high - middle), elinewidth=1, **style(course))
    _ticks(axes, axis, own)
    # Through the largest point of the slowest side: a curve above a guide grows less than it.
    units = np.array(sorted({unit for course in own for unit in course.units}), float)
    top = max(1e3 * course.seconds[-1] for course in own if course.units[-1] == units[-1])
    for power, line in ((1, "--"), (2, ":"))[: axis.degree]:
        axes.plot(units, top * (units / units[-1]) ** power, line, **GUIDE)


def _memory(axes: Any, axis: Axis, own: Sequence[Course], style: Any) -> None:
    """Peaks, and dashed what was fitted to them."""
    for course in own:
        if course.memory:
            axes.plot(course.units, [peak / 1e6 for peak in course.memory], linestyle="none", **style(course))
        if course.memory_line is not None:
            x = np.linspace(0, course.units[-1], 50)
            axes.plot(
                x, [course.memory_line(unit) / 1e6 for unit in x], "--", color=style(course)["color"], linewidth=1
            )
    axes.set_xlim(left=0)
    _ticks(axes, axis, own, apart=0.06)


def _ticks(axes: Any, axis: Axis, own: Sequence[Course], apart: float = 0.0) -> None:
    """The sizes that were measured, but those closer to the next larger one than a part of the axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = sorted({size for course in own for size in course.sizes}, reverse=True)
    shown: list[int] = []
    for size in sizes:
        if not shown or axis.units(shown[-1]) - axis.units(size) > apart * axis.units(sizes[0]):
            shown.append(size)
    axes.xaxis.set_major_locator(FixedLocator([axis.units(size) for size in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    names = {axis.units(size): f"{size}²" if axis.power == 2 else str(size) for size in shown}
    axes.xaxis.set_major_formatter(lambda value, _: names.get(round(value), ""))
