"""`bench`: every side in a process of its own, one after the other, and what they say of each other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import onnxft
from onnxft.benchmark.config import BenchConfig, Point, Side
from onnxft.benchmark.environment import available_threads, describe_device
from onnxft.benchmark.exchange import Measurement, Request
from onnxft.benchmark.floor import with_floors, work_of
from onnxft.benchmark.relations import with_numerics, with_ratios
from onnxft.benchmark.report import Report, Row, Work
from onnxft.benchmark.shared import SharedBaselines
from onnxft.benchmark.side_process import Outcome, run_side
from onnxft.benchmark.statistics import summarize
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.runtime.random_batch import TRAIN_ROLES, draws_random_numbers

Progress = Callable[[str], None]


def _quiet(message: str) -> None:
    pass


@dataclass
class _Entry:
    """What becomes a row: a side at a point, with the outcome of each repeat."""

    side: Side
    point: Point
    name: str
    """For messages."""
    place: Path
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(outcome.reason is not None for outcome in self.outcomes)

    @property
    def gradients(self) -> Path:
        return self.place / "gradients.safetensors"


def bench(
    artifact: Path,
    config: BenchConfig,
    progress: Progress = _quiet,
    *,
    keep_logs: Path | None = None,
    shared: SharedBaselines | None = None,
) -> Report:
    """Measure the step of an artifact on every side of the configuration, at every point.

    All sides are run in turn as often as `repeats` says; one that failed is not run again.

    Args:
        artifact: directory written by `onnxft export`.
        config: what is compared, and how long.
        progress: is told what begins and what ended.
        keep_logs: where the output of a failed side is kept: `bench.json` -> `bench.SIDE.log`. None: nowhere.
        shared: baselines that are there are not measured again, others are added. At one point alone.

    Returns:
        A report with one row per side and point, also for a side that crashed or hung.

    Raises:
        ArtifactError: the artifact has no manifest, or one that does not fit.
    """
    manifest = read_manifest(artifact)
    points = config.points(manifest.batch_size, available_threads())
    device = describe_device(max(point.threads for point in points))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="onnxft-bench-") as folder:
        entries = _entries(config, points, Path(folder))
        known = dict(shared.rows) if shared is not None else {}
        _run_all(artifact, config, [entry for entry in entries if entry.side.name not in known], progress)
        rows = [known.get(entry.side.name) or _row(entry, config, keep_logs) for entry in entries]
        reference = next((s.name for s in config.sides if any(r.side == s and r.summary for r in rows)), None)
        files = {
            (row.side.name, row.point): (
                shared.gradients(row.side) if shared is not None and row.side.name in known else entry.gradients
            )
            for row, entry in zip(rows, entries, strict=True)
            if row.measurement is not None and row.measurement.gradients_error is None
        }
        if shared is not None:
            for row, entry in zip(rows, entries, strict=True):
                if row.side.kind == "baseline" and row.side.name not in known:
                    shared.add(row, entry.gradients)
        random = config.trains and draws_random_numbers(manifest)
        rows = with_numerics(with_ratios(rows, reference), files, trains=config.trains, random=random)
        rows = with_floors(rows, manifest, config)
    return Report(
        work=_work(artifact, manifest, config, points[0].batch_size),
        config=config,
        device=device,
        started=started,
        onnxft=onnxft.__version__,
        reference=reference,
        rows=tuple(rows),
    )


def _entries(config: BenchConfig, points: Sequence[Point], folder: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    for point in points:
        for side in config.sides:
            at = f", batch {point.batch_size}, threads {point.threads}" if len(points) > 1 else ""
            place = folder / str(len(entries))
            place.mkdir()
            entries.append(_Entry(side, point, side.name + at, place))
    return entries


def _run_all(artifact: Path, config: BenchConfig, entries: Sequence[_Entry], progress: Progress) -> None:
    """Fill in the outcomes, all entries in turn for each repeat."""
    artifacts: dict[int, Path | Outcome] = {}
    for repeat in range(config.repeats):
        again = f", repeat {repeat + 1} of {config.repeats}" if config.repeats > 1 else ""
        for i, entry in enumerate(entries):
            if entry.failed:
                continue
            progress(f"{entry.name}: running ({i + 1} of {len(entries)}{again})")
            place = entry.place / str(repeat)
            place.mkdir()
            request = Request(
                artifact=str(artifact.resolve()),
                side=entry.side,
                config=config,
                batch_size=entry.point.batch_size,
                threads=entry.point.threads,
                result=str(place / "response.json"),
                gradients=str(entry.gradients),
            )
            outcome = run_side(request, place, artifacts)
            if again and outcome.reason is not None:
                outcome = replace(outcome, reason=f"{outcome.reason} (in repeat {repeat + 1} of {config.repeats})")
            entry.outcomes.append(outcome)
            progress(f"{entry.name}: {'done' if outcome.reason is None else f'failed: {outcome.reason}'}")


def _row(entry: _Entry, config: BenchConfig, keep_logs: Path | None) -> Row:
    row = Row(entry.side, batch_size=entry.point.batch_size, threads=entry.point.threads)
    last = entry.outcomes[-1]
    measured = [outcome.measurement for outcome in entry.outcomes if outcome.measurement is not None]
    if last.reason is not None:
        return replace(row, reason=last.reason, log=_keep(last.log, entry, keep_logs))
    m = pooled(measured)
    return replace(
        row,
        measurement=m,
        summary=summarize(m.step_seconds, entry.point.batch_size),
        repeat_means=tuple(fmean(one.step_seconds) for one in measured),
    )


def pooled(measured: Sequence[Measurement]) -> Measurement:
    """One measurement of several repeats: all times, the largest memory, the rest from the first."""
    rss = [m.peak_rss_bytes for m in measured if m.peak_rss_bytes is not None]
    gpu = [m.peak_gpu_bytes for m in measured if m.peak_gpu_bytes is not None]
    return replace(
        measured[0],
        warmup_seconds=tuple(t for m in measured for t in m.warmup_seconds),
        step_seconds=tuple(t for m in measured for t in m.step_seconds),
        peak_rss_bytes=max(rss, default=None),
        peak_gpu_bytes=max(gpu, default=None),
    )


def _keep(log: Path | None, entry: _Entry, keep_logs: Path | None) -> str | None:
    if keep_logs is None or log is None or not log.is_file():
        return None
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in entry.name.replace(", ", "."))
    kept = keep_logs.with_name(f"{keep_logs.stem}.{name}.log")
    shutil.copyfile(log, kept)
    return str(kept)


def _work(artifact: Path, manifest: Manifest, config: BenchConfig, batch_size: int) -> Work:
    least = work_of(manifest, batch_size, config.scenario)
    precisions = [manifest.graphs[role].precision for role in TRAIN_ROLES if role in manifest.graphs]
    return Work(
        artifact=str(artifact),
        generator=manifest.generator,
        precision=precisions[0],
        optimizer=manifest.optimizer.kind,
        batch_size=batch_size,
        num_trainable=manifest.num_trainable,
        num_frozen=manifest.frozen_parameters,
        flops=least.flops if least else None,
        bytes=least.bytes if least else None,
    )
