"""Made-up reports of benchmark tasks."""

from __future__ import annotations

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import KeptFeatures, Measurement
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.report import Device, Floor, Report, Row, Work
from onnxft.benchmark.statistics import summarize


def row(
    side: str,
    seconds: float,
    memory: int | None = 500_000_000,
    floor: float | None = None,
    precision: str = "float32",
    features: KeptFeatures | None = None,
    difference: float | None = None,
    opening: float = 1.0,
) -> Row:
    times = (0.9 * seconds, seconds, 1.3 * seconds)
    kind = "baseline" if side.startswith(("torch", "ort-training")) else "provider"
    measured = Measurement(side, side, {}, None, {}, opening, 1.0, (), times, memory, 0.5, precision=precision,
                           features=features)  # fmt: skip
    made = None if floor is None else Floor(floor, seconds / floor)
    numerics = None if difference is None else Numerics("torch", 0.0, difference)
    return Row(Side(side, kind), None, None, measured, summarize(times, 16), numerics=numerics, floor=made)


def failed(side: str, reason: str) -> Row:
    return Row(Side(side, "provider"), reason)


def report(*rows: Row, cpu: str = "a processor", threads: int = 2) -> Report:
    return Report(
        Work("a", "native", "float32", "adamw", 16, 1, 2), BenchConfig(), Device("Linux", cpu, 4, threads),
        "2026-01-02T03:04:05+00:00", "1.0", "torch", rows,
    )  # fmt: skip
