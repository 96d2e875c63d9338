"""The parts of an HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from onnxft.benchmark.page_style import CSS
from onnxft.benchmark.picture import Plot
from onnxft.benchmark.table import Column, Line, Table


def document(title: str, tool: str, about: str, lead: Iterable[str], parts: Iterable[str]) -> str:
    """The page.

    Args:
        title: what it shows.
        tool: what made it.
        about: a word behind that.
        lead: elements below the title.
        parts: elements below those; an empty one is left out.
    """
    body = [f"<header><p class=eyebrow>{escape(tool)} · {escape(about)}</p><h1>{escape(title)}</h1>"]
    body += [*lead, "</header>", "<main>", *parts, "</main>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · {escape(tool)}</title><style>{CSS}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def escape(text: object) -> str:
    """Escaped: names come from models and artifacts, messages from runtimes. HTML has no control characters."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)))


def section(table: Table) -> str:
    """A table under its title."""
    return f"<section><h2>{escape(table.title)}</h2>{grid(table)}</section>"


def grid(table: Table) -> str:
    """A table without its title; the head stays in sight."""
    heads = "".join(
        f"<th scope=col{_left(c)}>{escape(c.name)} <small>{escape(c.unit)}</small></th>" for c in table.columns
    )
    bodies = []
    for group, lines in table.groups.items():
        first = (
            f"<tr class=group><th colspan={len(table.columns)} scope=rowgroup>{escape(group)}</th></tr>"
            if group
            else ""
        )
        bodies.append(f"<tbody>{first}{''.join(_line(table.columns, line) for line in lines)}</tbody>")
    return f"<div class=scroll><table><thead><tr>{heads}</tr></thead>{''.join(bodies)}</table></div>"


def _line(columns: Sequence[Column], line: Line) -> str:
    cells = [f"<th scope=row>{escape(line.cells[0])}</th>"]
    for i, text in enumerate(line.cells[1:], start=1):
        shown = f"<strong>{escape(text)}</strong>" if i in line.best else escape(text)
        cells.append(f"<td{_left(columns[i])}>{shown}</td>")
    return f"<tr{' class=failed' if line.failed else ''}>{''.join(cells)}</tr>"


def _left(column: Column) -> str:
    return " class=words" if column.words else ""


def figures(drawn: Sequence[Plot]) -> str:
    """Beside each other where there is room; empty without any."""
    return f"<div class=plots>{''.join(map(_figure, drawn))}</div>" if drawn else ""


def _figure(plot: Plot) -> str:
    legend = "".join(f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in plot.legend)
    return (
        f"<figure><h2>{escape(plot.title)}</h2>{plot.svg}{f'<ul class=legend>{legend}</ul>' if legend else ''}"
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def fold(title: str, inner: str, *, open_: bool = False) -> str:
    """What opens under a title."""
    return f"<details{' open' if open_ else ''}><summary>{escape(title)}</summary>{inner}</details>"


def folds(title: str, inner: Iterable[str]) -> str:
    """One for all sides; empty where there is none inside."""
    folds = "".join(inner)
    return fold(title, folds) if folds else ""


def items(lines: Iterable[object]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
