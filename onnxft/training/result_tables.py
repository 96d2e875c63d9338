"""The tables of a run, with one row an epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxft.errors import ArtifactError

RESULTS, TIMINGS = "results.csv", "timings.csv"
Row = dict[str, float]


def table_bytes(rows: Sequence[Mapping[str, float]]) -> bytes:
    """The table as CSV; no number is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else repr(v) for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def read_table(path: Path, last_epoch: int) -> list[Row]:
    """The rows of a table for the epochs from 0 to the last; ArtifactError where they are not there."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]
        kept = [row for row in rows if row["epoch"] <= last_epoch]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as err:
        raise ArtifactError(f"'{path}' is missing or damaged ({err!r}), so this run cannot be resumed.") from err
    if [row["epoch"] for row in kept] != list(range(last_epoch + 1)):
        raise ArtifactError(
            f"'{path}' has not one row for each epoch from 0 to {last_epoch}, so this run cannot be resumed."
        )
    return kept


def _number(text: str) -> float:
    if not text:
        return math.nan
    return int(text) if text.isdecimal() else float(text)
