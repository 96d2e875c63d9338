"""The summary of the benchmark tasks: what each side takes, and whether the targets of `benchmark_targets` are met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmark_targets import OVER_FLOOR, RATIOS, Result, Trained, results

from onnxft.benchmark.exchange import KeptFeatures, Measurement
from onnxft.benchmark.report import Report
from onnxft.benchmark.units import digits, scientific
from onnxft.errors import DataError

Runs = dict[str, list[Report]]
"""{task: its reports}"""
FIRST_STEP = 2.0
"""Seconds within which the first step is wanted, after the artifact exists."""
COLUMNS = (
    "Task", "Side", "Precision", "p50 (ms)", "Ratio", "Floor (ms)", "x floor", "Target (ms)", "Met", "Peak (MB)",
    "Of torch's", "Memory met", "2 x ort-training", "max Δ gradient",
)  # fmt: skip


def read(folder: Path, tasks: Iterable[str]) -> Runs:
    """The reports `TASK.RUN.json` of a folder; DataError where there are none."""
    found = {task: sorted(folder.glob(f"{task}.[0-9]*.json")) for task in tasks}
    if not any(found.values()):
        raise DataError(f"'{folder}' holds no reports TASK.RUN.json of the tasks {', '.join(found)}.")
    return {task: [Report.from_json(file.read_bytes()) for file in files] for task, files in found.items() if files}


def summary(runs: Runs, parts: Mapping[str, Trained]) -> str:
    """The Markdown document: medians and spreads over the runs, and how many runs met a target."""
    reports = [report for task in runs.values() for report in task]
    device = reports[0].device
    lines = [
        "# Benchmark tasks",
        "",
        f"{device.cpu}, {device.threads} threads, onnxft {reports[0].onnxft}, {reports[0].started} and later.",
        "Medians over the runs, with the least and the greatest. The ratio is to the better of torch and",
        "torch-compile in the same precision (bfloat16 of torch is autocast) and the same run. A target is max(better",
        f"of torch / wanted ratio, {OVER_FLOOR} x floor), and met in so many of the runs. A floor is that of the step",
        "that the side makes. Memory is the peak of the process, compared with that of torch in float32, not compiled.",
        "A side with wrong gradients meets no target.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|---|---|{'---:|' * (len(COLUMNS) - 3)}",
    ]
    for task, of_task in runs.items():
        lines += _rows(task, parts[task], of_task)
    lines += [
        "",
        "## Best providers",
        "",
        "Of each precision the one that meets its targets of time and of memory in the most runs, else the fastest.",
        "",
        "| Task | Precision | Side | Ratio | Wanted | Met | Of torch's memory | Memory met |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, of_task in runs.items():
        lines += _best(task, parts[task], of_task)
    if kept := [line for task, of_task in runs.items() for line in _features(task, parts[task], of_task)]:
        lines += ["", "## Kept features", "", "| Task | Side | Computing, once (ms a row) | Keeping (bytes a row) |"]
        lines += ["|---|---|---:|---:|", *kept]
    lines += [
        "",
        "## First step",
        "",
        f"From an artifact on disk; under {FIRST_STEP:g} s is wanted.",
        "",
        "| Task | Side | Opening (s) | First step (s) | Both (s) | Met |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task, of_task in runs.items():
        lines += _first_steps(task, of_task)
    return "\n".join([*lines, ""])


def _rows(task: str, part: Trained, reports: Sequence[Report]) -> list[str]:
    """One row for each side, with the reason where it never ran."""
    sides = {row.side.name: row.side for report in reports for row in report.rows}
    found: dict[str, list[Result]] = {side: [] for side in sides}
    reasons = {row.side.name: row.reason for report in reports for row in report.rows if row.reason is not None}
    for report in reports:
        for result in results(report, part):
            found[result.side].append(result)
    lines = []
    for side, own in found.items():
        failed = f" ({len(reports) - len(own)} failed: {_cell(reasons[side])})" if side in reasons else ""
        precision = own[0].precision if own else sides[side].precision
        lines.append(f"| {task} | {side}{failed} | {precision} | {' | '.join(_numbers(own, part))} |")
    return lines


def _numbers(own: Sequence[Result], part: Trained) -> list[str]:
    return [
        _spread([1e3 * r.seconds for r in own]),
        _spread([r.ratio for r in own]),
        _middle([r.floor and 1e3 * r.floor for r in own]),
        _middle([r.floor and r.seconds / r.floor for r in own]),
        _middle([r.target and 1e3 * r.target for r in own]),
        _share([r.is_met for r in own]),
        _middle([r.memory and r.memory / 1e6 for r in own]),
        _middle([r.memory_ratio for r in own]),
        _share([r.is_small(part) for r in own]),
        _share([r.ort_training for r in own]),
        _worst(own),
    ]


def _best(task: str, part: Trained, reports: Sequence[Report]) -> list[str]:
    """The provider of each precision that meets both targets in the most runs, of several the fastest."""
    own = [r for report in reports for r in results(report, part) if r.is_provider]
    lines = []
    for precision in sorted({r.precision for r in own}, reverse=True):
        of_side: dict[str, list[Result]] = {}
        for r in own:
            if r.precision == precision:
                of_side.setdefault(r.side, []).append(r)
        _, _, side = min(
            (
                -sum(r.is_met is not False and bool(r.is_small(part)) for r in found),
                median(r.seconds for r in found),
                name,
            )
            for name, found in of_side.items()
        )
        found = of_side[side]
        cells = [
            _spread([r.ratio for r in found]),
            str(RATIOS[part].get(precision) or "-"),
            _share([r.is_met for r in found]),
            _middle([r.memory_ratio for r in found]),
            _share([r.is_small(part) for r in found]),
        ]
        lines.append(f"| {task} | {precision} | {side} | {' | '.join(cells)} |")
    return lines


def _features(task: str, part: Trained, reports: Sequence[Report]) -> list[str]:
    """What they take on every side that trains on them."""
    of_side: dict[str, list[KeptFeatures]] = {}
    for report in reports:
        for r in results(report, part):
            if r.features is not None:
                of_side.setdefault(r.side, []).append(r.features)
    return [
        f"| {task} | {side} | {_spread([1e3 * f.seconds for f in own])} | {own[0].bytes:,} |"
        for side, own in of_side.items()
    ]


def _first_steps(task: str, reports: Sequence[Report]) -> list[str]:
    """What each provider takes until its first step is done."""
    of_side: dict[str, list[Measurement]] = {}
    for row in (row for report in reports for row in report.rows):
        if row.side.kind == "provider" and row.measurement is not None:
            of_side.setdefault(row.side.name, []).append(row.measurement)
    lines = []
    for side, own in of_side.items():
        both = [m.build_seconds + m.first_step_seconds for m in own]
        columns = ([m.build_seconds for m in own], [m.first_step_seconds for m in own], both)
        met = _share([seconds < FIRST_STEP for seconds in both])
        lines.append(f"| {task} | {side} | {' | '.join(map(_spread, columns))} | {met} |")
    return lines


def _middle(values: Iterable[float | None]) -> str:
    """Their median."""
    known = [v for v in values if v is not None]
    return digits(median(known)) if known else "-"


def _spread(values: Iterable[float | None]) -> str:
    """Their median, with the least and the greatest of several."""
    known = [v for v in values if v is not None]
    around = f" ({digits(min(known))} to {digits(max(known))})" if len(known) > 1 else ""
    return f"{_middle(known)}{around}"


def _worst(own: Sequence[Result]) -> str:
    """The largest difference of a gradient, called wrong where it is more than rounding."""
    known = [r.difference for r in own if r.difference is not None]
    wrong = "" if all(r.is_right for r in own) else "**wrong** "
    return f"{wrong}{scientific(max(known))}" if known else "-"


def _share(values: Iterable[bool | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
