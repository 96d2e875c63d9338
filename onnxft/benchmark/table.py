"""The cells of a report as text, the same for every renderer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxft.benchmark.exchange import Measurement
from onnxft.benchmark.points import compared_word, points, step_word, time_unit
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.statistics import Ratio, Summary
from onnxft.benchmark.units import digits, format_ratio, format_seconds, megabytes, scientific

NONE = "-"


@dataclass(frozen=True)
class Column:
    """Head of a column."""

    name: str
    unit: str = ""
    words: bool = False
    """Whether the cells are read from the left."""


@dataclass(frozen=True)
class Line:
    """One row of cells."""

    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Indices of the cells that no other line of the group beats."""
    failed: bool = False
    group: str = ""
    """What the lines of one point of a sweep have in common; empty without a sweep."""


@dataclass(frozen=True)
class Table:
    """A title, columns, and as many cells in every line; lines of one group stand together."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def groups(self) -> dict[str, tuple[Line, ...]]:
        """{group: its lines}, in order."""
        return {g: tuple(line for line in self.lines if line.group == g) for g in (line.group for line in self.lines)}


def main_table(report: Report) -> Table:
    """What one looks at first; a column that is empty in every row is left out, a row never is."""
    unit, scale = time_unit(report)
    name = report.reference or ""
    deviation = (
        _Field(Column("max Δ", compared_word(report)), _numerics("gradient_difference"), scientific)
        if any(row.numerics and row.numerics.gradient_difference is not None for row in report.rows)
        else _Field(Column("Δ", "loss"), _numerics("loss_difference"), scientific)
    )
    return _table(
        report,
        "Speed, memory and agreement",
        [
            *(
                _Field(Column(p, unit), _summary(p), lambda s: digits(scale * s), cost=float)
                for p in ("p50", "p95", "p99")
            ),
            _Field(Column("samples", "per s"), _summary("samples_per_second"), digits, cost=lambda v: -v),
            _Field(Column("speed", f"× {name}"), partial(_ratio, report), format_ratio, cost=lambda r: -r.value),
            _Field(Column("first", step_word(report)), _measured("first_step_seconds"), format_seconds, cost=float),
            _Field(Column("memory", "MB"), _measured("peak_rss_bytes"), megabytes, cost=float),
            _Field(Column("GPU", "MB"), _measured("peak_gpu_bytes"), megabytes, cost=float),
            _Field(Column("×", "floor"), lambda row: row.floor and row.floor.distance, "{:.2f}".format, cost=float),
            deviation,
            _Field(Column("status", words=True), _status),
        ],
    )


def detail_table(report: Report) -> Table:
    """The rest of what has one value for every side."""
    unit, scale = time_unit(report)
    return _table(
        report,
        "Details",
        [
            _Field(Column("steps"), _summary("count"), "{:,}".format),
            _Field(Column("mean ± std", unit), lambda row: row.summary, lambda s: _mean(s, scale)),
            *(
                _Field(Column(short, unit), _summary(p), lambda s: digits(scale * s))
                for short, p in (("min", "minimum"), ("p90", "p90"), ("max", "maximum"))
            ),
            _Field(Column("build"), _measured("build_seconds"), format_seconds),
            _Field(Column("floor"), lambda row: row.floor and row.floor.seconds, format_seconds),
            _Field(Column("features", "once a row"), _kept("seconds"), format_seconds),
            _Field(Column("kept", "bytes a row"), _kept("bytes"), "{:,}".format),
            _Field(Column("runs on", words=True), _measured("provider_obtained")),
            _Field(Column("precision", words=True), _measured("precision")),
            _Field(Column("nodes", words=True), lambda row: row.measurement and _nodes(row.measurement)),
            _Field(Column("Δ loss"), _numerics("loss_difference"), scientific),
            _Field(Column(f"worst {compared_word(report)}", words=True), _numerics("worst_parameter")),
            _Field(Column("compared with", words=True), _numerics("reference")),
        ],
    )


def matrices(report: Report) -> tuple[Table, ...]:
    """Of a sweep: a line per point, a column per side; empty without a sweep."""
    at = points(report)
    if len(at) < 2:
        return ()
    unit, scale = time_unit(report)
    sides = tuple(dict.fromkeys(row.side.name for row in report.rows))

    def matrix(title: str, value: Callable[[Row], float | None], show: Callable[[float], str], sign: int) -> Table:
        lines = []
        for where, rows in at.items():
            of = {row.side.name: row for row in rows}
            values = [value(of[side]) if side in of else None for side in sides]
            texts = ["failed" if s in of and of[s].reason is not None else NONE for s in sides]
            cells = [t if v is None else show(v) for t, v in zip(texts, values, strict=True)]
            lines.append(Line((str(where), *cells), _best([None if v is None else sign * v for v in values], shift=1)))
        return Table(title, (Column("point", words=True), *map(Column, sides)), tuple(lines))

    return (
        matrix(f"p50 in {unit}", _summary("p50"), lambda s: digits(scale * s), 1),
        matrix("Samples per second", _summary("samples_per_second"), digits, -1),
    )


@dataclass(frozen=True)
class _Field:
    """A column, and where its cells come from."""

    column: Column
    value: Callable[[Row], Any]
    """None where the row has none."""
    show: Callable[[Any], str] = str
    cost: Callable[[Any], float] | None = None
    """Least for the best value; None: none is best."""

    def text(self, row: Row) -> str:
        value = self.value(row)
        return NONE if value is None else self.show(value)

    def rank(self, row: Row) -> float | None:
        value = self.value(row)
        return None if value is None or self.cost is None else self.cost(value)


def _table(report: Report, title: str, fields: Sequence[_Field]) -> Table:
    fields = [f for f in fields if any(f.value(row) is not None for row in report.rows)]
    at = points(report)
    lines = []
    for where, rows in at.items():
        best = [_best([f.rank(row) for row in rows]) for f in fields]
        for i, row in enumerate(rows):
            lines.append(
                Line(
                    (row.side.name, *(f.text(row) for f in fields)),
                    frozenset(k for k, found in enumerate(best, start=1) if i in found),
                    failed=row.reason is not None,
                    group=str(where) if len(at) > 1 else "",
                )
            )
    return Table(title, (Column("side", words=True), *(f.column for f in fields)), tuple(lines))


def _best(costs: Sequence[float | None], shift: int = 0) -> frozenset[int]:
    """Indices of the least cost, `shift` added; empty where there is nothing to beat."""
    known = [c for c in costs if c is not None]
    return frozenset(i + shift for i, c in enumerate(costs) if len(known) > 1 and c == min(known))


def _summary(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.summary, name, None)


def _measured(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.measurement, name, None)


def _kept(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.measurement and row.measurement.features, name, None)


def _numerics(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.numerics, name, None)


def _ratio(report: Report, row: Row) -> Ratio | None:
    """Of the reference 1, unless nothing was compared with it."""
    is_reference = row.summary is not None and row.side.name == report.reference
    return Ratio(1.0, 0.0) if is_reference and any(r.ratio for r in report.rows) else row.ratio


def _status(row: Row) -> str:
    m = row.measurement
    if row.reason is not None or m is None:
        return "failed"
    others = {provider: count for provider, count in m.nodes.items() if provider != m.provider_obtained}
    if not m.fallback_nodes:
        return "ok"
    return f"{m.fallback_nodes} on {next(iter(others))}" if len(others) == 1 else f"{m.fallback_nodes} elsewhere"


def _nodes(m: Measurement) -> str | None:
    return ", ".join(f"{count} {name}" for name, count in sorted(m.nodes.items())) or None


def _mean(s: Summary, scale: float) -> str:
    return f"{digits(scale * s.mean)} ± {100 * s.std / s.mean:.0f} %"
