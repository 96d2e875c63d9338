"""`bench`: every side in a process of its own, one after the other, and what they say of each other."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

import onnxft
from onnxft.benchmark.batch import TRAIN_ROLES, draws_random_numbers
from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Request, read_response, write
from onnxft.benchmark.isolate import last_line, run_isolated
from onnxft.benchmark.numerics import RANDOM, Gradients, Numerics, compare
from onnxft.benchmark.report import Device, Report, Row, Work
from onnxft.benchmark.statistics import speed_ratio, summarize
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest

Progress = Callable[[str], None]


def _quiet(message: str) -> None:
    pass


def bench(artifact: Path, config: BenchConfig, progress: Progress = _quiet, *, keep_logs: Path | None = None) -> Report:
    """Measure the training step of an artifact on every side of the configuration.

    Args:
        artifact: directory written by `onnxft export`.
        config: what is compared, and how long.
        progress: is told what begins and what ended.
        keep_logs: where the output of a failed side is kept: `bench.json` -> `bench.SIDE.log`. None: nowhere.

    Returns:
        A report with one row per side, also for a side that crashed or hung.

    Raises:
        ArtifactError: the artifact has no manifest, or one that does not fit.
        ConfigError: the artifact's batch cannot have the size asked for.
    """
    manifest = Manifest.load(artifact)
    if manifest.generator == "ort-training" and config.batch_size not in (None, manifest.batch_size):
        raise ConfigError(
            f"'batch_size' is {config.batch_size}, but a graph of onnxruntime-training is fixed to "
            f"{manifest.batch_size}. Leave it out, or export with --batch-size {config.batch_size}."
        )
    batch_size = config.batch_size or manifest.batch_size
    device = describe_device(config.threads or available_threads())
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[Row] = []
    gradients: dict[str, Gradients] = {}
    with tempfile.TemporaryDirectory(prefix="onnxft-bench-") as folder:
        for i, side in enumerate(config.sides):
            progress(f"{side.name}: running ({i + 1} of {len(config.sides)})")
            place = Path(folder) / str(i)
            place.mkdir()
            request = Request(
                artifact=str(artifact.resolve()),
                side=side,
                config=config,
                batch_size=batch_size,
                threads=device.threads,
                result=str(place / "response.json"),
                gradients=str(place / "gradients.safetensors"),
            )
            row, found = _run_side(request, place, keep_logs)
            rows.append(row)
            if found is not None:
                gradients[side.name] = found
            progress(f"{side.name}: {'done' if row.reason is None else f'failed: {row.reason}'}")
    reference = next((row for row in rows if row.summary), None)
    rows = _with_ratios(rows, reference)
    return Report(
        work=_work(artifact, manifest, batch_size),
        config=config,
        device=device,
        started=started,
        onnxft=onnxft.__version__,
        reference=reference.side.name if reference else None,
        rows=tuple(_with_numerics(rows, gradients, random=draws_random_numbers(manifest))),
    )


def available_threads() -> int:
    """Logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(threads: int) -> Device:
    """This machine."""
    return Device(platform.platform(), _cpu_name(), os.cpu_count() or 1, threads)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _run_side(request: Request, place: Path, keep_logs: Path | None) -> tuple[Row, Gradients | None]:
    """One row, and the gradients where the side has any."""
    side, log = request.side, place / "output.log"
    write(place / "request.json", request)
    python = request.config.python.get(side.name, sys.executable)
    # -P: a file in the working directory must not stand in for a package.
    command = [python, "-P", "-m", "onnxft.benchmark.worker", str(place / "request.json")]
    ended = run_isolated(command, log, request.config.time_limit_seconds)
    response = read_response(Path(request.result))
    if ended is None and response is not None and response.measurement is not None:
        m = response.measurement
        row = Row(side, measurement=m, summary=summarize(m.step_seconds, request.batch_size))
        if m.gradients_error is not None:
            return row, None
        try:
            return row, load_file(request.gradients)
        except (OSError, SafetensorError) as err:
            ended = f"the file of its gradients cannot be read ({err})"
    if response is not None and response.failure is not None:
        reason = f"{response.failure.kind}: {response.failure.message}"
    else:
        reason = _crash_reason(ended or "the process wrote no readable result", side, request.config, last_line(log))
    return Row(side, reason=reason, log=_keep(log, side, keep_logs)), None


def _crash_reason(ended: str, side: Side, config: BenchConfig, output: str) -> str:
    reason = f"{ended}; its last output: {output}" if output else ended
    if side.name in config.python and "No module named" in output:
        reason += f". Install onnxft in that environment: {config.python[side.name]} -m pip install onnxft"
    return reason


def _keep(log: Path, side: Side, keep_logs: Path | None) -> str | None:
    if keep_logs is None:
        return None
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in side.name)
    kept = keep_logs.with_name(f"{keep_logs.stem}.{name}.log")
    shutil.copyfile(log, kept)
    return str(kept)


def _with_ratios(rows: list[Row], reference: Row | None) -> list[Row]:
    if reference is None or reference.summary is None:
        return rows
    return [
        replace(row, ratio=speed_ratio(row.summary, reference.summary)) if row.summary and row is not reference else row
        for row in rows
    ]


def _with_numerics(rows: list[Row], gradients: dict[str, Gradients], *, random: bool) -> list[Row]:
    """Compare with torch where it ran, else with the first side; never with torch where masks differ."""
    candidates = [r for r in rows if r.side.name in gradients and not (random and r.side.kind == "baseline")]
    reference = candidates[0] if candidates else None
    return [replace(row, numerics=_numerics(row, reference, gradients, random=random)) for row in rows]


def _numerics(row: Row, reference: Row | None, gradients: dict[str, Gradients], *, random: bool) -> Numerics | None:
    if row.measurement is None or row is reference:
        return None
    name = reference.side.name if reference else None
    if random and row.side.kind == "baseline":
        return Numerics(name, reason=RANDOM)
    if row.side.name not in gradients:
        return Numerics(name, reason=f"not compared: {row.measurement.gradients_error}")
    assert reference is not None and reference.measurement is not None  # this row has gradients, so one is there
    ref = reference.side.name
    return compare(row.measurement.loss, gradients[row.side.name], reference.measurement.loss, gradients[ref], ref)


def _work(artifact: Path, manifest: Manifest, batch_size: int) -> Work:
    precisions = [manifest.graphs[role].precision for role in TRAIN_ROLES if role in manifest.graphs]
    return Work(
        artifact=str(artifact),
        generator=manifest.generator,
        precision=precisions[0],
        optimizer=manifest.optimizer.kind,
        batch_size=batch_size,
        num_trainable=manifest.num_trainable,
        num_frozen=manifest.frozen_parameters,
    )
