"""A report as Markdown, to stand in a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnxft.benchmark.operators import operator_tables
from onnxft.benchmark.report import Report
from onnxft.benchmark.sentences import header, notes, verdict, versions
from onnxft.benchmark.table import Column, Line, Table, detail_table, main_table, matrices


def render(report: Report) -> str:
    """The verdict and the tables, with what was measured above and what went wrong below."""
    parts = ["# onnxft bench", _list((*header(report), report.started)), f"**{escape(verdict(report))}**"]
    parts += [table_text(table) for table in (main_table(report), *matrices(report), *operator_tables(report))]
    if notes(report):
        parts += ["## Notes", _list(note.text for note in notes(report))]
    parts += [table_text(detail_table(report))]
    if versions(report):
        parts += ["## Versions", _list(versions(report))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is: names come from models and messages from runtimes.

    >>> print(escape("a|b <img> _fc"))
    a\|b \<img\> \_fc
    """
    return re.sub(r"([\\`*_{}\[\]<>#|!&~@])", r"\\\1", " ".join(text.split()))


def table_text(table: Table) -> str:
    """A table under its title; that of the lines of a group below."""
    parts = [f"## {table.title}"]
    for group, lines in table.groups.items():
        parts += ([f"### {escape(group)}"] if group else []) + [_grid(table.columns, lines)]
    return "\n\n".join(parts)


def _grid(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    head = [escape(f"{c.name} {c.unit}".rstrip()) for c in columns]
    rule = ["---" if c.words else "---:" for c in columns]
    body = [[f"**{escape(c)}**" if i in line.best else escape(c) for i, c in enumerate(line.cells)] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
