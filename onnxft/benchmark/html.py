"""A report as one HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from onnxft.benchmark.page import document, escape, figures, fold, folds, grid, items, section
from onnxft.benchmark.plots import plots
from onnxft.benchmark.points import compared_word, points
from onnxft.benchmark.report import Report
from onnxft.benchmark.sentences import header, notes, verdict, versions
from onnxft.benchmark.svg import check
from onnxft.benchmark.table import Column, Line, Table, detail_table, main_table, matrices
from onnxft.benchmark.units import format_seconds

__all__ = ["check", "render"]


def render(report: Report) -> str:
    """The page; the same report gives the same bytes.

    Raises:
        ConfigError: matplotlib is missing.
    """
    check()
    name = PurePath(report.work.artifact).name or report.work.artifact
    lead = (
        f"<p class=verdict>{escape(verdict(report))}</p>",
        *(f"<p class=meta>{escape(line)}</p>" for line in (*header(report), report.started)),
    )
    parts = (
        section(main_table(report)),
        _notes(report),
        *map(section, matrices(report)),
        figures(plots(report)),
        "<h2>Details</h2>",
        fold("Every side", grid(detail_table(report)), open_=True),
        folds(f"{compared_word(report).capitalize()}s", _compared(report)),
        folds("Operators", _operators(report)),
        folds("Nodes that fell back", _fallback(report)),
        *_options(report),
        fold("Versions", items(versions(report))) if versions(report) else "",
        fold("Environment", _json(report.device)),
        fold("Configuration", _json({"work": report.work, "config": report.config})),
    )
    return document(name, "onnxft bench", report.config.scenario, lead, parts)


def _notes(report: Report) -> str:
    items = "".join(f"<li{' class=failed' if n.failed else ''}>{escape(n.text)}</li>" for n in notes(report))
    return f"<ul class=notes>{items}</ul>" if items else ""


def _json(value: Any) -> str:
    return f"<pre>{escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>"


def _plain(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    return grid(Table("", tuple(columns), tuple(Line(tuple(row)) for row in rows)))


def _compared(report: Report) -> Iterable[str]:
    columns = (Column("of", words=True), Column("relative difference"))
    for title, row in _titled(report):
        if row.numerics and row.numerics.by_parameter:
            ranked = sorted(row.numerics.by_parameter.items(), key=lambda item: (-item[1], item[0]))
            cells = [(name, f"{value:.1e}") for name, value in ranked]
            yield fold(f"{title} against {row.numerics.reference}", _plain(columns, cells))


def _operators(report: Report) -> Iterable[str]:
    columns = (Column("operator", words=True), Column("provider", words=True), Column("calls a step"), Column("time"))
    for title, row in _titled(report):
        if row.measurement and row.measurement.operators:
            cells = [
                (o.operator, o.provider, f"{o.count}", format_seconds(o.seconds)) for o in row.measurement.operators
            ]
            yield fold(title, _plain(columns, cells))


def _fallback(report: Report) -> Iterable[str]:
    for title, row in _titled(report):
        for provider, names in row.measurement.fallback.items() if row.measurement else ():
            yield fold(f"{title}: {len(names)} on {provider}", items(names))


def _options(report: Report) -> Iterable[str]:
    lines = [
        f"{title}: {', '.join(f'{key}={value}' for key, value in row.measurement.options.items())}"
        for title, row in _titled(report)
        if row.measurement and row.measurement.options
    ]
    if lines:
        yield fold("Provider options", items(lines))


def _titled(report: Report) -> list[tuple[str, Any]]:
    """Every row with its name, and its point in a sweep."""
    several = len(points(report)) > 1
    return [(f"{r.side.name}{f' at {r.point}' if several else ''}", r) for r in report.rows]
