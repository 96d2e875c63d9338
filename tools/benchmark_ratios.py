"""The ratios of the providers to torch in the benchmark tasks, with what produced them: what a baseline stores."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
from benchmark_summary import Runs
from benchmark_targets import Trained, results

from onnxft.errors import DataError


@dataclass(frozen=True)
class Ratios:
    """Of a provider to torch, not compiled: medians over the runs; None where torch or the system did not tell."""

    time: float | None
    """Torch's step in the same precision / the provider's: more is better."""
    memory: float | None
    """The provider's peak / that of torch in float32: less is better."""


@dataclass(frozen=True)
class Origin:
    """What produced the ratios."""

    cpu: str
    threads: int
    platform: str
    started: str
    """Of the first run; UTC, ISO 8601."""
    runs: int
    """Of a task, the fewest."""
    commit: str
    """Of the working tree that wrote the file; `+changes` where it had others."""
    versions: dict[str, str]
    """{package: version} of all sides; several versions of one package stand beside each other."""


@dataclass(frozen=True)
class Baseline:
    """What is stored: {task: {provider: its ratios}}, and what produced them."""

    origin: Origin
    ratios: dict[str, dict[str, Ratios]]

    def to_json(self) -> bytes:
        """Indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def measured(runs: Runs, parts: Mapping[str, Trained], *, strict: bool = False) -> Baseline:
    """The ratios of all providers of the reports.

    DataError where none has a ratio, where the reports are of several machines, and, if `strict`, where a side failed.
    """
    found: dict[str, dict[str, Ratios]] = {}
    for task, reports in runs.items():
        own = [r for report in reports for r in results(report, parts[task]) if r.is_provider]
        for side in dict.fromkeys(r.side for r in own):
            times = [r.over_torch for r in own if r.side == side and r.over_torch is not None]
            memory = [r.memory_ratio for r in own if r.side == side and r.memory_ratio is not None]
            ratios = Ratios(median(times) if times else None, median(memory) if memory else None)
            if ratios != Ratios(None, None):
                found.setdefault(task, {})[side] = ratios
    if not found:
        raise DataError("no provider has a ratio to torch. Measure with --side torch and the side of a provider.")
    wrong = problems(runs, parts) if strict else {}
    for (task, side), reason in wrong.items():
        raise DataError(f"{side} in {task}: {reason}. A baseline holds what works: measure it again, or without it.")
    return Baseline(_origin(runs), found)


def problems(runs: Runs, parts: Mapping[str, Trained]) -> dict[tuple[str, str], str]:
    """{(task, provider): why no ratio of it counts}"""
    found: dict[tuple[str, str], str] = {}
    for task, reports in runs.items():
        for report in reports:
            for row in report.rows:
                if row.reason is not None and row.side.kind == "provider":
                    found[task, row.side.name] = " ".join(row.reason.replace("|", "/").split())
            wrong = [r for r in results(report, parts[task]) if r.is_provider and not r.is_right]
            found |= {(task, r.side): "its gradients are wrong" for r in wrong}
    return found


def _origin(runs: Runs) -> Origin:
    reports = [report for of_task in runs.values() for report in of_task]
    machines = {(r.device.cpu, r.device.threads) for r in reports}
    if len(machines) > 1:
        names = ", ".join(f"{threads} threads of '{cpu}'" for cpu, threads in sorted(machines))
        raise DataError(f"the reports are of several machines ({names}). Keep those of each in a folder of its own.")
    versions: dict[str, set[str]] = {"onnxft": {report.onnxft for report in reports}}
    for measurement in (row.measurement for report in reports for row in report.rows if row.measurement):
        for package, version in measurement.versions.items():
            versions.setdefault(package, set()).add(version)
    return Origin(
        reports[0].device.cpu, reports[0].device.threads, reports[0].device.platform, min(r.started for r in reports),
        min(map(len, runs.values())), commit(), {name: ", ".join(sorted(versions[name])) for name in sorted(versions)},
    )  # fmt: skip


def commit() -> str:
    """Of the working tree that this file lies in; `unknown` without git."""
    said = []
    for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        said.append(done.stdout.strip())
    return said[0] + ("+changes" if said[1] else "")
