"""A report as one HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from onnxft.benchmark.page_style import CSS
from onnxft.benchmark.picture import Plot
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
    body = [
        f"<header><p class=eyebrow>onnxft bench · {_text(report.config.scenario)}</p><h1>{_text(name)}</h1>",
        f"<p class=verdict>{_text(verdict(report))}</p>",
        *(f"<p class=meta>{_text(line)}</p>" for line in header(report)),
        f"<p class=meta>{_text(report.started)}</p></header>",
        "<main>",
        _section(main_table(report)),
        _notes(report),
        *map(_section, matrices(report)),
        _figures(plots(report)),
        "<h2>Details</h2>",
        _fold("Every side", _grid(detail_table(report)), open_=True),
        _folds(f"{compared_word(report).capitalize()}s", _compared(report)),
        _folds("Operators", _operators(report)),
        _folds("Nodes that fell back", _fallback(report)),
        *_options(report),
        _fold("Versions", _items(versions(report))) if versions(report) else "",
        _fold("Environment", _json(report.device)),
        _fold("Configuration", _json({"work": report.work, "config": report.config})),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)} · onnxft bench</title><style>{CSS}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _text(text: object) -> str:
    """Escaped: names come from models and artifacts, messages from runtimes. HTML has no control characters."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)))


def _section(table: Table) -> str:
    return f"<section><h2>{_text(table.title)}</h2>{_grid(table)}</section>"


def _grid(table: Table) -> str:
    heads = "".join(
        f"<th scope=col{_left(c)}>{_text(c.name)} <small>{_text(c.unit)}</small></th>" for c in table.columns
    )
    bodies = []
    for group, lines in table.groups.items():
        first = (
            f"<tr class=group><th colspan={len(table.columns)} scope=rowgroup>{_text(group)}</th></tr>" if group else ""
        )
        bodies.append(f"<tbody>{first}{''.join(_line(table.columns, line) for line in lines)}</tbody>")
    return f"<div class=scroll><table><thead><tr>{heads}</tr></thead>{''.join(bodies)}</table></div>"


def _line(columns: Sequence[Column], line: Line) -> str:
    cells = [f"<th scope=row>{_text(line.cells[0])}</th>"]
    for i, text in enumerate(line.cells[1:], start=1):
        shown = f"<strong>{_text(text)}</strong>" if i in line.best else _text(text)
        cells.append(f"<td{_left(columns[i])}>{shown}</td>")
    return f"<tr{' class=failed' if line.failed else ''}>{''.join(cells)}</tr>"


def _left(column: Column) -> str:
    return " class=words" if column.words else ""


def _notes(report: Report) -> str:
    items = "".join(f"<li{' class=failed' if n.failed else ''}>{_text(n.text)}</li>" for n in notes(report))
    return f"<ul class=notes>{items}</ul>" if items else ""


def _figures(drawn: Sequence[Plot]) -> str:
    return f"<div class=plots>{''.join(map(_figure, drawn))}</div>" if drawn else ""


def _figure(plot: Plot) -> str:
    legend = "".join(f'<li><i style="background:{color}"></i>{_text(name)}</li>' for name, color in plot.legend)
    return (
        f"<figure><h2>{_text(plot.title)}</h2>{plot.svg}{f'<ul class=legend>{legend}</ul>' if legend else ''}"
        f"<figcaption>{_text(plot.caption)}</figcaption></figure>"
    )


def _fold(title: str, inner: str, *, open_: bool = False) -> str:
    return f"<details{' open' if open_ else ''}><summary>{_text(title)}</summary>{inner}</details>"


def _folds(title: str, inner: Iterable[str]) -> str:
    """One for all sides; empty where there is none inside."""
    folds = "".join(inner)
    return _fold(title, folds) if folds else ""


def _items(lines: Iterable[object]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _json(value: Any) -> str:
    return f"<pre>{_text(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>"


def _plain(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    return _grid(Table("", tuple(columns), tuple(Line(tuple(row)) for row in rows)))


def _compared(report: Report) -> Iterable[str]:
    columns = (Column("of", words=True), Column("relative difference"))
    for title, row in _titled(report):
        if row.numerics and row.numerics.by_parameter:
            ranked = sorted(row.numerics.by_parameter.items(), key=lambda item: (-item[1], item[0]))
            cells = [(name, f"{value:.1e}") for name, value in ranked]
            yield _fold(f"{title} against {row.numerics.reference}", _plain(columns, cells))


def _operators(report: Report) -> Iterable[str]:
    columns = (Column("operator", words=True), Column("provider", words=True), Column("calls a step"), Column("time"))
    for title, row in _titled(report):
        if row.measurement and row.measurement.operators:
            cells = [
                (o.operator, o.provider, f"{o.count}", format_seconds(o.seconds)) for o in row.measurement.operators
            ]
            yield _fold(title, _plain(columns, cells))


def _fallback(report: Report) -> Iterable[str]:
    for title, row in _titled(report):
        for provider, names in row.measurement.fallback.items() if row.measurement else ():
            yield _fold(f"{title}: {len(names)} on {provider}", _items(names))


def _options(report: Report) -> Iterable[str]:
    lines = [
        f"{title}: {', '.join(f'{key}={value}' for key, value in row.measurement.options.items())}"
        for title, row in _titled(report)
        if row.measurement and row.measurement.options
    ]
    if lines:
        yield _fold("Provider options", _items(lines))


def _titled(report: Report) -> list[tuple[str, Any]]:
    """Every row with its name, and its point in a sweep."""
    several = len(points(report)) > 1
    return [(f"{r.side.name}{f' at {r.point}' if several else ''}", r) for r in report.rows]
