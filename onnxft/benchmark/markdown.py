"""A report as Markdown."""

from __future__ import annotations

import re

from onnxft.benchmark.report import Report
from onnxft.benchmark.table import Table, header, notes, tables, versions


def render(report: Report) -> str:
    """The tables, with what was measured above and what went wrong below."""
    parts = ["# onnxft bench", _list(header(report)), *(_table(table) for table in tables(report))]
    if notes(report):
        parts += ["## Notes", _list(notes(report))]
    if versions(report):
        parts += ["## Versions", _list(versions(report))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is: names come from models and messages from runtimes.

    >>> print(escape("a|b <img> _fc"))
    a\|b \<img\> \_fc
    """
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> str:
    rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.lines]
    lines = ["| " + " | ".join(cells if i == 1 else [escape(c) for c in cells]) + " |" for i, cells in enumerate(rows)]
    return "\n".join([f"## {table.title}", "", *lines])


def _list(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
