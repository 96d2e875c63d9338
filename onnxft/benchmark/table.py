"""The cells of a report as plain text, the same for every renderer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from onnxft.benchmark.report import Report, Row

NONE = "-"


@dataclass(frozen=True)
class Table:
    """Column names, and one line of cells per side."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def tables(report: Report) -> tuple[Table, ...]:
    """How fast; what that took and where it ran; whether it computes the same."""
    versus = f"vs {report.reference}" if report.reference else "ratio"
    parts: tuple[tuple[str, tuple[str, ...], Callable[[Row], tuple[str, ...]]], ...] = (
        ("Speed", ("p50", "p95", "p99", "mean ± std", "samples/s", versus), partial(_speed, report.reference)),
        ("Start, memory and placement", ("build", "first step", "peak RSS", "runs on", "nodes", "fell back"), _cost),
        ("Agreement", ("Δ loss", "max Δ gradient", "worst parameter", "compared with"), _agreement),
    )
    return tuple(
        Table(
            title, ("side", *columns), tuple((row.side.name, *_cells(row, len(columns), cells)) for row in report.rows)
        )
        for title, columns, cells in parts
    )


def header(report: Report) -> tuple[str, ...]:
    """What was measured on what, as sentences."""
    w, d = report.work, report.device
    total = w.num_trainable + w.num_frozen
    return (
        f"{w.artifact}: {w.generator}, {w.precision}, {w.optimizer}, {w.num_trainable:,} of {total:,} parameters "
        f"trained ({100 * w.num_trainable / total:.1f} %), batch {w.batch_size}",
        f"{d.cpu}, {d.threads} of {d.logical_cpus} logical CPUs, {d.platform}",
        f"onnxft {report.onnxft}, {report.started}",
    )


def notes(report: Report) -> tuple[str, ...]:
    """A line for every side that failed or could not be compared."""
    lines = []
    for row in report.rows:
        if row.reason is not None:
            lines.append(f"{row.side.name} failed: {row.reason}{f' (log: {row.log})' if row.log else ''}")
        elif row.numerics is not None and row.numerics.reason is not None:
            lines.append(f"{row.side.name}: {row.numerics.reason}")
    return tuple(lines)


def versions(report: Report) -> tuple[str, ...]:
    """The packages of each side that ran."""
    return tuple(
        f"{row.side.name}: {', '.join(f'{name} {version}' for name, version in row.measurement.versions.items())}"
        for row in report.rows
        if row.measurement
    )


def format_seconds(seconds: float) -> str:
    """Three significant digits in the unit that fits.

    >>> [format_seconds(s) for s in (0.00421, 0.0421, 0.421, 4.21)]
    ['4.21 ms', '42.1 ms', '421 ms', '4.21 s']
    """
    if seconds >= 0.9995:
        return f"{_three_digits(seconds)} s"
    return f"{_three_digits(1000 * seconds)} ms"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _cells(row: Row, count: int, cells: Callable[[Row], tuple[str, ...]]) -> tuple[str, ...]:
    return cells(row) if row.reason is None else ("failed", *[NONE] * (count - 1))


def _speed(reference: str | None, row: Row) -> tuple[str, ...]:
    s = row.summary
    assert s is not None  # as no reason for a failure is there
    ratio = f"{row.ratio.value:.2f} ± {row.ratio.spread:.2f}x" if row.ratio else NONE
    return (
        format_seconds(s.p50),
        format_seconds(s.p95),
        format_seconds(s.p99),
        f"{format_seconds(s.mean)} ± {100 * s.std / s.mean:.0f} %",
        f"{s.samples_per_second:,.0f}" if s.samples_per_second >= 100 else f"{s.samples_per_second:.3g}",
        "1 (reference)" if row.side.name == reference else ratio,
    )


def _cost(row: Row) -> tuple[str, ...]:
    m = row.measurement
    assert m is not None  # as no reason for a failure is there
    return (
        format_seconds(m.build_seconds),
        format_seconds(m.first_step_seconds),
        NONE if m.peak_rss_bytes is None else f"{m.peak_rss_bytes / 1e6:,.0f} MB",
        m.provider_obtained,
        ", ".join(f"{count} {name}" for name, count in sorted(m.nodes.items())) or NONE,
        NONE if m.fallback_nodes is None else str(m.fallback_nodes),
    )


def _agreement(row: Row) -> tuple[str, ...]:
    n = row.numerics
    if n is None:
        return NONE, NONE, NONE, NONE
    if n.loss_difference is None or n.gradient_difference is None:
        return "not compared", "not compared", NONE, n.reference or NONE
    return f"{n.loss_difference:.1e}", f"{n.gradient_difference:.1e}", n.worst_parameter or NONE, n.reference or NONE
