"""Made-up reports for the renderers."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgspec

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import KeptFeatures, Measurement, OperatorTime
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.report import Device, Floor, Report, Row, Work
from onnxft.benchmark.statistics import speed_ratio, summarize

HOSTILE = """<script>alert("x'&amp;")</script>$\\frac{_]|[bold]\x07\n`"""
REASON = "ProviderError: no [bold]GPU[/bold] <here>"
SECONDS = {
    # side: seconds of a step of 16 rows with 2 threads
    "torch": 0.0251,
    "torch-compile": 0.0242,
    "torch:bfloat16": 0.0123,
    "cpu": 0.0302,
    "openvino": 0.0221,
    "openvino:bfloat16": 0.0111,
}


def row(name: str, batch_size: int = 16, threads: int = 2) -> Row:
    """A side that ran, as yet compared with nothing."""
    seconds = SECONDS[name] * batch_size / 16 * 2 / threads
    times = tuple(seconds * factor for factor in (0.98, 1.0, 1.01, 1.05))
    provider, _, precision = name.partition(":")
    baseline = provider.startswith("torch")
    fallen = ("gather_0", "gather_1", "gather_2", "gather_3") if provider == "openvino" else ()
    m = Measurement(
        provider_requested=provider,
        provider_obtained=provider,
        nodes={} if baseline else {provider: 30, **({"cpu": 4} if fallen else {})},
        fallback_nodes=None if baseline else len(fallen),
        versions={"runtime": "1.32"},
        build_seconds=0.5,
        first_step_seconds=0.25 + seconds,
        warmup_seconds=(seconds,),
        step_seconds=times,
        peak_rss_bytes=int(2e8 + 1e6 * list(SECONDS).index(name) + 1e5 * batch_size),
        loss=1.5,
        options={} if baseline else {"arena": "shared"},
        precision=precision or "float32",
        fallback={"cpu": fallen} if fallen else {},
        operators=() if baseline else tuple(
            OperatorTime(f"Op{i}", provider, i + 1, seconds / 2 ** (i + 1)) for i in range(10)
        ),
    )  # fmt: skip
    floor = None if baseline else Floor(seconds / 1.5, 1.5)
    kind = "baseline" if baseline else "provider"
    summary = summarize(times, batch_size)
    return Row(Side(name, kind), measurement=m, summary=summary, batch_size=batch_size, threads=threads, floor=floor)


def failed(name: str, batch_size: int = 16, threads: int = 2) -> Row:
    return Row(
        Side(name, "provider"), REASON, f"out/bench.{name}.log", batch_size=batch_size, threads=threads
    )  # fmt: skip


def compared(rows: list[Row]) -> list[Row]:
    """With ratio and numerics relative to the first."""
    reference, *others = rows
    assert reference.summary is not None
    made = [reference]
    for i, each in enumerate(others, start=1):
        if each.summary is None:
            made.append(each)
            continue
        by_parameter = {"net.0.bias": 1.1e-7 * i, "net.0.weight": 3.5e-5 * i}
        numerics = Numerics(reference.side.name, 1.25e-7 * i, 3.5e-5 * i, "net.0.weight", by_parameter)
        made.append(replace(each, ratio=speed_ratio(each.summary, reference.summary), numerics=numerics))
    return made


def report(rows: list[Row], reference: str | None = "torch", config: BenchConfig | None = None) -> Report:
    return Report(
        work=Work("artifacts/a|b", "native", "float32", "adamw", 16, 1_000, 22_568_456, flops=36.3e9, bytes=1e9),
        config=config or BenchConfig(providers=("openvino", "cuda"), baselines=("torch",), source="m:f"),
        device=Device("Linux-6.1-x86_64-with-glibc2.36", "Some(R) CPU @ 2 GHz", 4, 2),
        started="2026-11-24T08:00:00+00:00",
        onnxft="0.1.0",
        reference=reference,
        rows=tuple(rows),
    )


def two() -> Report:
    return report(compared([row("torch"), row("openvino")]))


def one_failed() -> Report:
    return report([*compared([row(name) for name in SECONDS]), failed("cuda")])


def all_failed() -> Report:
    return report([failed("cuda"), failed("tensorrt")], reference=None)


def without_memory() -> Report:
    rows = [replace(r, measurement=replace(r.measurement, peak_rss_bytes=None)) for r in two().rows if r.measurement]
    return report(rows)


def with_gpu() -> Report:
    rows = [replace(r, measurement=replace(r.measurement, peak_gpu_bytes=1_234_000_000)) if r.measurement else r
            for r in one_failed().rows]  # fmt: skip
    return report(rows)


def inference() -> Report:
    names = ("openvino:bfloat16", "cpu")
    rows = [replace(r, numerics=r.numerics and Numerics(names[0], 2.5e-4)) for r in compared([row(n) for n in names])]
    return report(rows, names[0], BenchConfig(providers=names, scenario="inference"))


def cached() -> Report:
    rows = [replace(r, measurement=replace(r.measurement, features=KeptFeatures(0.00125, 98_304)))
            if r.measurement and r.side.kind == "provider" else r
            for r in compared([row(n) for n in ("torch", "cpu", "openvino:bfloat16")])]  # fmt: skip
    config = BenchConfig(providers=("cpu", "openvino:bfloat16"), baselines=("torch",), source="m:f", scenario="cached")
    return report(rows, config=config)


def sweep() -> Report:
    rows: list[Row] = []
    for batch_size in (8, 16, 32):
        for threads in (1, 2):
            ran = [row(name, batch_size, threads) for name in ("torch", "cpu", "openvino:bfloat16")]
            rows += [*compared(ran), failed("cuda", batch_size, threads)]
    return report(rows)


def long_names() -> Report:
    return named(one_failed(), "_" + "very.long.name" * 12)


def hostile_names() -> Report:
    return named(one_failed(), HOSTILE)


REPORTS = {
    f.__name__: f
    for f in (
        two, one_failed, all_failed, without_memory, with_gpu, inference, cached, sweep, long_names, hostile_names
    )
}  # fmt: skip


def named(given: Report, ending: str) -> Report:
    """The report with `ending` after every string that is not one of a fixed set, keys included."""
    free_keys = {"nodes", "versions", "options", "fallback", "by_parameter"}

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k + ending if key in free_keys else k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, key) for v in value]
        return value + ending if isinstance(value, str) and key not in ("kind", "over") else value

    parts = {f.name: getattr(given, f.name) for f in fields(given) if f.name != "config"}
    changed = msgspec.convert({**walk(msgspec.to_builtins(parts)), "config": msgspec.to_builtins(given.config)}, Report)
    return replace(changed, config=given.config)
