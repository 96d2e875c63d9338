"""Which columns of a table are inputs and labels of a model."""

from __future__ import annotations

from collections.abc import Sequence

from onnxft.data.options import DataOptions
from onnxft.data.rows import Rows
from onnxft.data.text import INPUTS
from onnxft.errors import DataError, near
from onnxft.manifest import LABELS, SAMPLE_WEIGHTS, Manifest
from onnxft.runtime.evaluation import data_ports

_LABEL_COLUMNS = (LABELS, "label")


def next_token(manifest: Manifest, labels: Sequence[str]) -> bool:
    """Whether the labels of a text are its own tokens."""
    return manifest.loss.shift > 0 and not labels


def require_ignored(manifest: Manifest) -> None:
    """DataError where the loss has no label for padding."""
    if manifest.loss.ignore_index is None:
        raise DataError(
            f"the loss of '{manifest.name}' ignores no label, which padding of texts needs: export it with one."
        )


def label_columns(rows: Rows, manifest: Manifest, options: DataOptions) -> list[str]:
    """Columns of the labels; none where the model has no labels or predicts the next token of its text."""
    if LABELS not in {p.name for p in data_ports(manifest)}:
        return []
    if options.label_columns:
        for column in options.label_columns:
            _require_column(rows, column)
        return options.label_columns
    if manifest.loss.shift > 0:
        require_ignored(manifest)
        return []
    found = [c for c in _LABEL_COLUMNS if c in rows.columns]
    if not found:
        raise DataError(
            f"'{rows.path}' has no column '{LABELS}' or 'label' (it has {_spelled(rows.columns)}): name that of the "
            f"labels with --label-column.{_separator_hint(rows)}"
        )
    return found[:1]


def input_columns(
    rows: Rows, manifest: Manifest, options: DataOptions, labels: Sequence[str]
) -> dict[str, Sequence[str]]:
    """{input: its columns}; the inputs of a text together as `input_ids`."""
    ports = {p.name: p for p in data_ports(manifest) if p.role == "input"}
    is_text = INPUTS[0] in ports
    names = [n for n in ports if not (is_text and n in INPUTS[1:])]
    given = {names[0] if key == "" and len(names) == 1 else key: columns for key, columns in
             options.input_columns.items()}  # fmt: skip
    for key, columns in given.items():
        if key not in names:
            what = "columns were given without the name of their input" if key == "" else f"there is no input '{key}'"
            raise DataError(f"{what} (--input-column NAME=COLUMN).{near(key, names)}")
        for column in columns:
            _require_column(rows, column)
            if column in labels:
                raise DataError(f"the column '{column}' of '{rows.path}' is both an input and a label.")
    taken = {*labels, SAMPLE_WEIGHTS, *(c for columns in given.values() for c in columns)}
    free = [c for c in rows.columns if c not in taken]
    found: dict[str, Sequence[str]] = {}
    for name in names:
        wants_text = is_text and name == INPUTS[0]
        if name in given:
            found[name] = given[name]
        elif name in free:
            found[name] = [name]
        elif len(names) == 1 and wants_text and "text" in free:
            found[name] = ["text"]
        elif len(names) == 1 and (len(free) == 1 or (free and not wants_text and len(ports[name].shape) <= 2)):
            found[name] = free
        else:
            raise DataError(
                f"which column of '{rows.path}' the input '{name}' reads is not known (it has "
                f"{_spelled(rows.columns)}): name it with --input-column {name}=COLUMN."
            )
        if wants_text and len(found[name]) > 2:
            raise DataError(
                f"a text is one column, or two for a pair, not {len(found[name])} ({_spelled(found[name])})."
            )
    return found


def _require_column(rows: Rows, column: str) -> None:
    if column not in rows.columns:
        raise DataError(f"'{rows.path}' has no column '{column}'.{near(column, rows.columns)}{_separator_hint(rows)}")


def _separator_hint(rows: Rows) -> str:
    """Where the header is one cell with another separator in it."""
    if len(rows.columns) != 1:
        return ""
    found = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"))
                  if mark in rows.columns[0]), None)  # fmt: skip
    return f" Its cells seem to be separated by {found}: .csv takes commas, .tsv tabs." if found else ""


def _spelled(columns: Sequence[str]) -> str:
    shown = ", ".join(f"'{c}'" for c in columns[:12])
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"
