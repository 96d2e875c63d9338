"""The floor of every row: the time of the model's own work at the peaks that the side itself reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxft.benchmark.exchange import Peaks
from onnxft.benchmark.report import Floor, Row
from onnxft.manifest import Amount, Manifest


def with_floors(rows: Sequence[Row], manifest: Manifest, *, inference: bool = False) -> list[Row]:
    """The rows, with a floor where the work of the model was counted and the side has its peaks.

    `inference` takes the forward pass alone.
    """
    return [replace(row, floor=_floor(row, manifest, inference=inference)) for row in rows]


def work_of(manifest: Manifest, batch_size: int, *, inference: bool = False) -> Amount | None:
    """Operations and bytes of a step, or of the forward pass, on `batch_size` rows; None where nobody counted."""
    work = manifest.work
    if work is None:
        return None
    part = work.forward if inference else Amount(work.flops, work.bytes)
    return Amount(part.flops * batch_size // manifest.batch_size, part.bytes * batch_size // manifest.batch_size)


def floor_seconds(work: Amount, peaks: Peaks, precision: str) -> float:
    """flops / peak + bytes / bandwidth; in half precision every value has half the bytes."""
    size = work.bytes if precision == "float32" else work.bytes / 2
    return work.flops / peaks.flops + size / peaks.bandwidth


def _floor(row: Row, manifest: Manifest, *, inference: bool) -> Floor | None:
    work = work_of(manifest, row.batch_size, inference=inference)
    if work is None or row.summary is None or row.measurement is None or row.measurement.peaks is None:
        return None
    seconds = floor_seconds(work, row.measurement.peaks, row.measurement.precision)
    return Floor(seconds, row.summary.p50 / seconds)
