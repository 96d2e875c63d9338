"""The targets of the benchmark tasks, and how far each side of a report meets them.

A step meets its target within max(better of torch and torch-compile / ratio, 1.4 x floor), in the same precision and
run; bfloat16 of torch is its autocast. The memory of a provider meets the target with at most a half of that of torch
in float32, with 0.65 where all is trained and nothing is recomputed. A step that recomputes pays for its memory with
time, and has no target of speed. A side with wrong gradients meets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxft.benchmark.exchange import KeptFeatures
from onnxft.benchmark.report import Report, Row

Trained = Literal["head", "last blocks", "full", "full, recomputed", "head, cached", "last blocks, cached"]
"""What a step trains; `cached` on kept features, as from the second epoch on, `recomputed` with the activations of each
block computed again for its backward pass."""
RATIOS: dict[Trained, dict[str, float]] = {
    "head": {"float32": 4, "bfloat16": 6},
    "last blocks": {"float32": 2, "bfloat16": 2},
    "full": {"float32": 1.25, "bfloat16": 1.25},
    "full, recomputed": {},
    "head, cached": {"float32": 50, "bfloat16": 50},
    "last blocks, cached": {"float32": 4, "bfloat16": 4},
}
"""{what is trained: {precision: how many times as fast as torch}}"""
MEMORY: dict[Trained, float] = {
    "head": 0.5, "last blocks": 0.5, "full": 0.65, "full, recomputed": 0.5,
    "head, cached": 0.5, "last blocks, cached": 0.5,
}  # fmt: skip
"""{what is trained: the most memory, as a part of torch's}"""
ORT_TRAINING = "ort-training"
ORT_TRAINING_RATIO = 2.0
OVER_FLOOR = 1.4
MOST_DIFFERENT = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.1}
"""{precision: relative difference from which on the worst gradient is wrong}; also twice that of torch in the same
precision is right, since there a gradient that is zero but for rounding, as a key's bias has it, is all rounding."""


@dataclass(frozen=True)
class Result:
    """One side in one run; None where something is missing to say it."""

    side: str
    precision: str
    is_provider: bool
    seconds: float
    """Median step."""
    ratio: float | None
    """To the better of torch and torch-compile, in the same precision."""
    target: float | None
    """Seconds that a step may take."""
    over_torch: float | None
    """Speed relative to torch, not compiled, in the same precision."""
    memory: int | None
    memory_ratio: float | None
    """To torch in float32."""
    floor: float | None
    """Seconds that a step cannot beat."""
    features: KeptFeatures | None
    """Of a side that trains on them."""
    difference: float | None
    """Of the worst gradient; None where it was not compared, as that of the side that others are compared with."""
    is_right: bool
    """Whether that is rounding."""
    ort_training: bool | None
    """Whether the target against onnxruntime-training is met."""

    @property
    def is_met(self) -> bool | None:
        """Whether the step is right, and fast enough."""
        return None if self.target is None else self.is_right and self.seconds <= self.target

    def is_small(self, part: Trained) -> bool | None:
        """Whether the step is right, and takes little enough memory."""
        if not self.is_provider or self.memory_ratio is None:
            return None
        return self.is_right and self.memory_ratio <= MEMORY[part]


def target_seconds(part: Trained, precision: str, torch: Iterable[float], floor: float | None) -> float | None:
    """max(better of torch / ratio, 1.4 floor); None where no torch ran, or the precision has no target."""
    better, ratio = min(torch, default=None), RATIOS[part].get(precision)
    return None if better is None or ratio is None else max(better / ratio, OVER_FLOOR * (floor or 0.0))


def results(report: Report, part: Trained) -> list[Result]:
    """The sides of one run that ran."""
    ran = {row.side.name: row for row in report.rows if row.summary is not None}
    return [_result(name, row, ran, part) for name, row in ran.items()]


def _result(name: str, row: Row, ran: Mapping[str, Row], part: Trained) -> Result:
    precision = _precision(row)
    seconds, floor = _seconds(row), row.floor.seconds if row.floor else None
    same = [
        _seconds(r) for n, r in ran.items()
        if n.partition(":")[0] in ("torch", "torch-compile") and _precision(r) == precision
    ]  # fmt: skip
    torch = next((r for n, r in ran.items() if n.partition(":")[0] == "torch" and _precision(r) == precision), None)
    memory, torch_memory = _memory(row), _memory(ran["torch"]) if "torch" in ran else None
    is_provider = row.side.kind == "provider"
    peer = ran.get(ORT_TRAINING) if is_provider and precision == "float32" and RATIOS[part] else None
    difference, is_right = _difference(row), _is_right(row, ran)
    fast_enough = max(_seconds(peer) / ORT_TRAINING_RATIO, OVER_FLOOR * (floor or 0.0)) if peer is not None else None
    return Result(
        name,
        precision,
        is_provider,
        seconds,
        min(same) / seconds if same else None,
        target_seconds(part, precision, same, floor) if is_provider else None,
        _seconds(torch) / seconds if torch is not None else None,
        memory,
        memory / torch_memory if memory and torch_memory else None,
        floor,
        row.measurement.features if row.measurement is not None else None,
        difference,
        is_right,
        None if fast_enough is None else is_right and seconds <= fast_enough,
    )


def _is_right(row: Row, ran: Mapping[str, Row]) -> bool:
    difference, precision = _difference(row), _precision(row)
    if difference is None:
        return True
    torch = (_difference(r) for n, r in ran.items() if n.partition(":")[0] == "torch" and _precision(r) == precision)
    return difference <= max(MOST_DIFFERENT[precision], 2 * max((d for d in torch if d is not None), default=0.0))


def _difference(row: Row) -> float | None:
    return row.numerics.gradient_difference if row.numerics is not None else None


def _precision(row: Row) -> str:
    return row.measurement.precision if row.measurement is not None else "float32"


def _seconds(row: Row) -> float:
    assert row.summary is not None
    return row.summary.p50


def _memory(row: Row) -> int | None:
    return row.measurement.peak_rss_bytes if row.measurement is not None else None
