"""The floor of every row: the time of the model's own work at the peaks that the side itself reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxft.benchmark.config import BenchConfig, Scenario
from onnxft.benchmark.exchange import Peaks
from onnxft.benchmark.report import Floor, Row
from onnxft.manifest import Manifest
from onnxft.step_work import Amount


def with_floors(rows: Sequence[Row], manifest: Manifest, config: BenchConfig) -> list[Row]:
    """The rows, with a floor of the step that the side makes, where its work was counted and the side has its peaks."""
    return [replace(row, floor=_floor(row, manifest, config.scenario_of(row.side))) for row in rows]


def work_of(manifest: Manifest, batch_size: int, scenario: Scenario) -> Amount | None:
    """Operations and bytes of a step on `batch_size` rows; None where nobody counted.

    An inference is the forward pass alone, and a step on kept features the part of the model behind them.
    """
    work = manifest.work_from_features if scenario == "cached" else manifest.work
    if work is None:
        return None
    part = work.forward if scenario == "inference" else Amount(work.flops, work.bytes)
    return Amount(part.flops * batch_size // manifest.batch_size, part.bytes * batch_size // manifest.batch_size)


def floor_seconds(work: Amount, peaks: Peaks, precision: str) -> float:
    """flops / peak + bytes / bandwidth; in half precision every value has half the bytes."""
    size = work.bytes if precision == "float32" else work.bytes / 2
    return work.flops / peaks.flops + size / peaks.bandwidth


def _floor(row: Row, manifest: Manifest, scenario: Scenario) -> Floor | None:
    work = work_of(manifest, row.batch_size, scenario)
    if work is None or row.summary is None or row.measurement is None or row.measurement.peaks is None:
        return None
    seconds = floor_seconds(work, row.measurement.peaks, row.measurement.precision)
    return Floor(seconds, row.summary.p50 / seconds)
