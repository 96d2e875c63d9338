"""A report as tables for the terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from onnxft.benchmark.operators import operator_tables
from onnxft.benchmark.report import Report
from onnxft.benchmark.sentences import header, notes, verdict
from onnxft.benchmark.table import Column, Line, Table, main_table, matrices

_PIPED_WIDTH = 100
_NAME_WIDTHS = (28, 18)
_CELL_WIDTH = 40
_HEAD_WIDTH = 12
_HEAD_LINES = 4


def show(report: Report) -> None:
    """Print to stdout; a pipe has no width, so the tables get one that they fit in."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A stdout without the letters shows question marks: the measurement has taken minutes.
        sys.stdout.reconfigure(errors="replace")
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(render(report))


def render(report: Report) -> RenderableType:
    """Something that `rich.console.Console.print` shows; names are never read as markup."""
    parts: list[RenderableType] = [Text(line) for line in header(report)]
    parts += ["", _Fitted(main_table(report))]
    for table in (*matrices(report), *operator_tables(report)):
        parts += ["", Text(table.title, style="bold"), _Fitted(table)]
    parts += ["", Text(verdict(report), style="bold")]
    parts += [Text(note.text, style="red" if note.failed else "yellow") for note in notes(report)]
    return Group(*parts)


class _Fitted:
    """A table whose columns continue below, beside the names again, where the console is too narrow for all."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.heads = [_head(column) for column in table.columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The roomiest that fits, else the tightest.
        for name_width, gap in ((_NAME_WIDTHS[0], 2), (_NAME_WIDTHS[0], 1), (_NAME_WIDTHS[1], 1)):
            folded = [_fold_cells(line, name_width) for line in self.table.lines]
            widths = [_width([*head, *(line.cells[i] for line in folded)]) for i, head in enumerate(self.heads)]
            if sum(widths) + gap * (len(widths) - 1) <= options.max_width:
                break
        for n, columns in enumerate(_pack(widths, gap, options.max_width)):
            if n > 0:
                yield ""
            for j, (group, lines) in enumerate(replace(self.table, lines=tuple(folded)).groups.items()):
                if group:
                    yield self._grid(columns, widths, gap, ()) if j == 0 else ""
                    yield Text(group, style="bold cyan")
                yield self._grid(columns, widths, gap, lines, with_head=not group)

    def _grid(
        self, columns: Sequence[int], widths: Sequence[int], gap: int, lines: Sequence[Line], *, with_head: bool = True
    ) -> RenderableType:
        # The box has a blank of its own between two columns.
        padding = (0, gap - 1, 0, 0)
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, show_header=with_head, padding=padding, pad_edge=False)
        for i in columns:
            justify: JustifyMethod = "left" if self.table.columns[i].words else "right"
            grid.add_column(Text("\n".join(self.heads[i])), justify=justify, min_width=widths[i], overflow="fold")
        for line in lines:
            grid.add_row(*(Text(line.cells[i], style=_style(line, i)) for i in columns))
        return grid


def _fold_cells(line: Line, name_width: int) -> Line:
    return replace(line, cells=tuple(_folded(c, _CELL_WIDTH if i else name_width) for i, c in enumerate(line.cells)))


def _width(texts: Sequence[str]) -> int:
    return max(cell_len(line) for text in texts for line in text.split("\n"))


def _head(column: Column) -> tuple[str, ...]:
    """Lines of the head; the name of a side may be long, and stands in full on the left."""
    texts = [text for text in (column.name, column.unit) if text]
    lines = [line for text in texts for line in _folded(text, _HEAD_WIDTH).split("\n")]
    return tuple(lines if len(lines) <= _HEAD_LINES else [*lines[: _HEAD_LINES - 1], "…"])


def _folded(text: str, width: int) -> str:
    """Lines of at most `width` cells, broken after a blank or the colon of `provider:precision` where there is one."""
    if cell_len(text) <= width:
        return text
    lines = [""]
    for word in re.findall(r"[^\s:]*[\s:]?", text):
        for part in chop_cells(word, width) if cell_len(word) > width else [word]:
            if cell_len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _style(line: Line, i: int) -> str:
    if line.failed:
        return "red"
    return "bold green" if i in line.best else "bold" if i == 0 else ""


def _pack(widths: Sequence[int], gap: int, most: int) -> list[list[int]]:
    """Indices of the columns of each part, the first column in all of them; a part has one other at least."""
    parts: list[list[int]] = [[0]]
    used = widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if used + gap + width > most and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(i)
        used += gap + width
    return parts
