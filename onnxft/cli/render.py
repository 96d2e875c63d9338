"""What the commands print: tables and sentences on stdout, progress and errors on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxft.manifest import Manifest

if TYPE_CHECKING:
    from onnxft.api import Plan

_MAX_ROWS = 40


def console() -> Console:
    """Standard output; plain text when it is not a terminal."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of plain text."""
    console().print(escape(text))


def size_text(size: int) -> str:
    """A number of bytes in the unit that fits: `512 B`, `1.5 kB`, `98.2 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def table(*columns: str) -> Table:
    """An empty table without borders; a column whose name begins with `>` holds numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def parameter_table(plan: Plan) -> None:
    """Every parameter with its shape and whether it is trained, and the totals."""
    chosen, total = plan.selection.groups, 0
    rows = []
    for tensor in plan.forward.tensors:
        if tensor.kind != "parameter":
            continue
        total += tensor.size
        name = tensor.name + (f" = {', '.join(tensor.tied_to)}" if tensor.tied_to else "")
        state = "train" if tensor.name in chosen else plan.selection.skipped.get(tensor.name, "-")
        rows.append((escape(name), " × ".join(map(str, tensor.shape)) or "scalar", f"{tensor.size:,}", state))
    made = table("parameter", "shape", ">values", "")
    shown = rows if len(rows) <= _MAX_ROWS else _around_changes(rows)
    for row in shown:
        made.add_row(*row, style="" if row[3] == "train" else "dim")
    console().print(made)
    trained = sum(t.size for t in plan.forward.tensors if t.name in chosen)
    say(
        f"{len(chosen)} of {len(rows)} parameters are trained: {trained:,} of {total:,} values ({trained / total:.1%})."
    )
    if plan.selection.batch_norms:
        names = ", ".join(layer.name for layer in plan.selection.batch_norms)
        say(f"BatchNorm layers that train their running statistics: {names}.")


def _around_changes(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """First and last of each run of rows with the same state; what lies between is counted."""
    shown: list[tuple[str, str, str, str]] = []
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][3] != rows[start][3]:
            run = rows[start:i]
            shown += run if len(run) <= 4 else [run[0], (f"… {len(run) - 2} more", "", "", run[0][3]), run[-1]]
            start = i
    return shown


def artifact_summary(directory: Path, manifest: Manifest) -> None:
    """What was written, and the next command."""
    size = sum((directory / name).stat().st_size for name in manifest.files)
    say(f"Wrote {directory} ({len(manifest.files) + 1} files, {size_text(size)}, generator {manifest.generator}).")
    say(f"Next: onnxft train {directory} --data DATA.npz")
