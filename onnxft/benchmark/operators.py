"""Where a step's time goes, by the runtime's own profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxft.benchmark.points import points, time_unit
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.table import NONE, Column, Line, Table
from onnxft.benchmark.units import digits

OTHERS = "others"


@dataclass(frozen=True)
class Profile:
    """The longest operators of the sides that were profiled; of a sweep at its last point."""

    rows: tuple[Row, ...]
    seconds: tuple[tuple[str, tuple[float, ...]], ...]
    """(operator, of a step on each side), the longest first and `others` last."""
    where: str
    """The point of the sweep; empty without one."""


def profile(report: Report, most: int) -> Profile | None:
    """The `most` longest operators, and the others as one; None where nothing was profiled."""
    at = {
        where: [r for r in rows if r.measurement and r.measurement.operators] for where, rows in points(report).items()
    }
    profiled = [(where, rows) for where, rows in at.items() if rows]
    if not profiled:
        return None
    where, rows = profiled[-1]
    times = [_by_operator(row) for row in rows]
    total = {name: sum(of.get(name, 0.0) for of in times) for of in times for name in of}
    order = sorted(total, key=lambda name: (-total[name], name))
    seconds = [(name, tuple(of.get(name, 0.0) for of in times)) for name in order[:most]]
    if rest := order[most:]:
        seconds.append((OTHERS, tuple(sum(of.get(name, 0.0) for name in rest) for of in times)))
    return Profile(tuple(rows), tuple(seconds), str(where) if len(at) > 1 else "")


def operator_tables(report: Report, most: int = 15) -> tuple[Table, ...]:
    """A line for each of the longest operators, a column for each side; empty where nothing was profiled."""
    found = profile(report, most)
    if found is None:
        return ()
    unit, scale = time_unit(report)
    sides = [Column(row.side.name, unit) for row in found.rows]
    lines = [Line((name, *(digits(scale * s) if s else NONE for s in seconds))) for name, seconds in found.seconds]
    title = "Time per operator" + (f", {found.where}" if found.where else "")
    return (Table(title, (Column("operator", words=True), *sides), tuple(lines)),)


def _by_operator(row: Row) -> Mapping[str, float]:
    """{operator: seconds of a step, on whichever provider}"""
    found: dict[str, float] = {}
    for each in row.measurement.operators if row.measurement else ():
        found[each.operator] = found.get(each.operator, 0.0) + each.seconds
    return found
