"""A report as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxft.benchmark import table
from onnxft.benchmark.report import Report


def render(report: Report) -> RenderableType:
    """Something that `rich.console.Console.print` shows; names are never read as markup."""
    parts: list[RenderableType] = [Text(line) for line in table.header(report)]
    parts += [_table(t) for t in table.tables(report)]
    parts += [Text(line, style="yellow") for line in table.notes(report)]
    return Group(*parts)


def _table(cells: table.Table) -> Table:
    shown = Table(title=Text(cells.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(cells.columns):
        shown.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for line in cells.lines:
        shown.add_row(*(Text(cell) for cell in line))
    return shown
