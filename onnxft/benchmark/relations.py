"""What the rows of a report say of each other: speed ratios and differences, always at the same point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file

from onnxft.benchmark.config import Point
from onnxft.benchmark.numerics import RANDOM, Numerics, compare
from onnxft.benchmark.report import Row
from onnxft.benchmark.statistics import Ratio, repeated_ratio, speed_ratio

Files = Mapping[tuple[str, Point], Path]
"""{(side, point): safetensors file with its gradients or outputs}"""


def with_ratios(rows: list[Row], reference: str | None) -> list[Row]:
    """Each row with its speed relative to the side `reference` at the row's point, where both ran."""
    references = {row.point: row for row in rows if row.side.name == reference and row.summary}
    return [replace(row, ratio=_ratio(row, references.get(row.point))) for row in rows]


def _ratio(row: Row, reference: Row | None) -> Ratio | None:
    if reference is None or row is reference or row.summary is None or reference.summary is None:
        return None
    if len(row.repeat_means) > 1:
        return repeated_ratio(row.repeat_means, reference.repeat_means)
    return speed_ratio(row.summary, reference.summary)


def with_numerics(rows: list[Row], files: Files, *, trains: bool, random: bool) -> list[Row]:
    """Each row compared with the first in float32 that ran at its point, never with a baseline where masks differ."""
    found = []
    for row in rows:
        there = [r for r in rows if r.point == row.point and (r.side.name, r.point) in files]
        fit = [r for r in there if not (random and r.side.kind == "baseline")]
        # Against a side in half precision every other would seem wrong.
        reference = min(fit, key=lambda r: r.side.precision != "float32", default=None)
        found.append(replace(row, numerics=_numerics(row, reference, files, trains=trains, random=random)))
    return found


def _numerics(row: Row, reference: Row | None, files: Files, *, trains: bool, random: bool) -> Numerics | None:
    if row.measurement is None or row is reference:
        return None
    name = reference.side.name if reference else None
    if random and row.side.kind == "baseline":
        return Numerics(name, reason=RANDOM)
    own = files.get((row.side.name, row.point))
    if own is None:
        return Numerics(name, reason=f"not compared: {row.measurement.gradients_error}")
    assert reference is not None and reference.measurement is not None  # this row has arrays, so one is there
    ref = reference.side.name
    return compare(
        row.measurement.loss,
        load_file(own),
        reference.measurement.loss,
        load_file(files[ref, row.point]),
        ref,
        "gradient" if trains else "output",
    )
