"""The summary of the benchmark tasks: what each side takes, and whether the targets are met.

A step meets its target within max(better of torch and torch-compile / ratio, 1.4 x floor), in the same precision and
run. Its memory meets the target with at most a half of torch's in float32, with 0.65 where all is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from onnxft.benchmark.report import Report, Row
from onnxft.errors import DataError

Trained = Literal["head", "last blocks", "full"]
RATIOS: dict[Trained, dict[str, float]] = {
    "head": {"float32": 4, "bfloat16": 6},
    "last blocks": {"float32": 2, "bfloat16": 2},
    "full": {"float32": 1.25, "bfloat16": 1.25},
}
"""{what is trained: {precision: how many times as fast as torch}}"""
MEMORY: dict[Trained, float] = {"head": 0.5, "last blocks": 0.5, "full": 0.65}
"""{what is trained: the most memory, as a part of torch's}"""
ORT_TRAINING = "ort-training"
ORT_TRAINING_RATIO = 2.0
OVER_FLOOR = 1.4
Runs = dict[str, list[Report]]
"""{task: its reports}"""


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
    memory: int | None
    memory_ratio: float | None
    """To torch in float32."""
    distance: float | None
    """From the floor."""
    ort_training: bool | None
    """Whether the target against onnxruntime-training is met."""

    @property
    def is_met(self) -> bool | None:
        """Whether the step is fast enough."""
        return None if self.target is None else self.seconds <= self.target


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
    memory, torch_memory = _memory(row), _memory(ran["torch"]) if "torch" in ran else None
    is_provider = row.side.kind == "provider"
    peer = ran.get(ORT_TRAINING) if is_provider and precision == "float32" else None
    return Result(
        name,
        precision,
        is_provider,
        seconds,
        min(same) / seconds if same else None,
        target_seconds(part, precision, same, floor) if is_provider else None,
        memory,
        memory / torch_memory if memory and torch_memory else None,
        row.floor.distance if row.floor else None,
        None if peer is None else seconds <= max(_seconds(peer) / ORT_TRAINING_RATIO, OVER_FLOOR * (floor or 0.0)),
    )


def _precision(row: Row) -> str:
    return row.measurement.precision if row.measurement is not None else "float32"


def _seconds(row: Row) -> float:
    assert row.summary is not None
    return row.summary.p50


def _memory(row: Row) -> int | None:
    return row.measurement.peak_rss_bytes if row.measurement is not None else None


# ----- reading and writing -----


def read(folder: Path, tasks: Iterable[str]) -> Runs:
    """The reports `TASK.RUN.json` of a folder; DataError where there are none."""
    found = {task: sorted(folder.glob(f"{task}.[0-9]*.json")) for task in tasks}
    if not any(found.values()):
        raise DataError(f"'{folder}' holds no reports TASK.RUN.json of the tasks {', '.join(found)}.")
    return {task: [Report.from_json(file.read_bytes()) for file in files] for task, files in found.items() if files}


def summary(runs: Runs, parts: Mapping[str, Trained], left_out: Mapping[str, str]) -> str:
    """The Markdown document: medians over the runs, and how many runs met a target."""
    reports = [report for task in runs.values() for report in task]
    device = reports[0].device
    lines = [
        "# Benchmark tasks",
        "",
        f"{device.cpu}, {device.threads} threads, onnxft {reports[0].onnxft}, {reports[0].started} and later.",
        "Medians over the runs. The ratio is to the better of torch and torch-compile in the same precision and run.",
        f"A target is max(better of torch / ratio, {OVER_FLOOR} x floor); met in how many of the runs.",
        "",
        "| Task | Side | Step (ms) | Ratio | Memory (MB) | Of torch's | x floor | Target (ms) | Met "
        "| Memory met | 2 x ort-training |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task, of_task in runs.items():
        lines += _rows(task, parts[task], of_task)
    lines += [
        "",
        "## Best providers",
        "",
        "| Task | Precision | Side | Ratio | Wanted | Met |",
        "|---|---|---|---:|---:|---:|",
    ]
    for task, of_task in runs.items():
        lines += _best(task, parts[task], of_task)
    lines += ["", *(f"Left out: {task}, since {reason}." for task, reason in left_out.items())]
    lines += ["Not measured: steps with the frozen part cached, and recomputation.", ""]
    return "\n".join(lines)


def _rows(task: str, part: Trained, reports: Sequence[Report]) -> list[str]:
    """One row for each side, with the reason where it never ran."""
    found: dict[str, list[Result]] = {row.side.name: [] for report in reports for row in report.rows}
    reasons = {row.side.name: row.reason for report in reports for row in report.rows if row.reason is not None}
    for report in reports:
        for result in results(report, part):
            found[result.side].append(result)
    lines = []
    for side, own in found.items():
        failed = f" ({len(reports) - len(own)} failed: {_cell(reasons[side])})" if side in reasons else ""
        lines.append(f"| {task} | {side}{failed} | {' | '.join(_numbers(own, part))} |")
    return lines


def _numbers(own: Sequence[Result], part: Trained) -> list[str]:
    small = [r.memory_ratio <= MEMORY[part] for r in own if r.is_provider and r.memory_ratio is not None]
    return [
        _middle([1e3 * r.seconds for r in own], ".1f"),
        _middle([r.ratio for r in own], ".2f"),
        _middle([r.memory and r.memory / 1e6 for r in own], ".0f"),
        _middle([r.memory_ratio for r in own], ".2f"),
        _middle([r.distance for r in own], ".2f"),
        _middle([r.target and 1e3 * r.target for r in own], ".1f"),
        _share([r.is_met for r in own]),
        _share(small),
        _share([r.ort_training for r in own]),
    ]


def _best(task: str, part: Trained, reports: Sequence[Report]) -> list[str]:
    """The fastest provider of each precision."""
    own = [r for report in reports for r in results(report, part) if r.is_provider]
    lines = []
    for precision in sorted({r.precision for r in own}, reverse=True):
        of_side: dict[str, list[Result]] = {}
        for r in own:
            if r.precision == precision:
                of_side.setdefault(r.side, []).append(r)
        side = min(of_side, key=lambda name: median(r.seconds for r in of_side[name]))
        ratio, wanted = _middle([r.ratio for r in of_side[side]], ".2f"), RATIOS[part].get(precision)
        met = _share([r.is_met for r in of_side[side]])
        lines.append(f"| {task} | {precision} | {side} | {ratio} | {wanted or '-'} | {met} |")
    return lines


def _middle(values: Iterable[float | None], form: str) -> str:
    known = [v for v in values if v is not None]
    return format(median(known), form) if known else "-"


def _share(values: Iterable[bool | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
