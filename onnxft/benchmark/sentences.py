"""What a report says in words, the same for every renderer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxft.benchmark.config import Point
from onnxft.benchmark.points import points, step_word
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.statistics import Ratio, Summary, speed_ratio
from onnxft.benchmark.units import format_ratio, format_seconds
from onnxft.memory import size_text

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Note:
    """A line below the table."""

    text: str
    failed: bool = False


def header(report: Report) -> tuple[str, str]:
    """The work, and the machine."""
    w, d, at = report.work, report.device, points(report)
    total = _count(w.num_trainable + w.num_frozen)
    trained = (
        *(["training on kept features"] if report.config.scenario == "cached" else []),
        f"{_count(w.num_trainable)} of {total} parameters",
        w.optimizer,
    )
    batches = {p.batch_size for p in at} or {w.batch_size}
    work = [
        w.artifact,
        w.generator,
        *(trained if report.config.trains else ("inference", f"{total} parameters")),
        f"batch {_listed(batches)}",
        *([f"{w.flops / 1e9:.3g} GFLOP"] if w.flops is not None and len(batches) == 1 else []),
    ]
    machine = [
        re.sub(r"\((R|TM|tm)\)| CPU\b", "", d.cpu),
        f"{_listed({p.threads for p in at} or {d.threads})} of {d.logical_cpus} CPUs",
        d.platform.partition("-with-")[0],
        f"onnxft {report.onnxft}",
    ]
    return " · ".join(work), " · ".join(machine)


def verdict(report: Report) -> str:
    """The fastest side in one sentence."""
    at = {where: [row for row in rows if row.summary] for where, rows in points(report).items()}
    if not any(at.values()):
        return "Every side failed."
    if len(at) == 1:
        return _verdict_of_point(report, next(iter(at.values())))
    fastest = [min(rows, key=_mean) for rows in at.values() if rows]
    counts = Counter(row.side.name for row in fastest).most_common()
    said: list[str] = []
    for name, count in counts:
        ratios = [row.ratio.value for row in fastest if row.side.name == name and row.ratio]
        against = f" ({_span(ratios)} times the speed of {report.reference})" if ratios else ""
        where = f"at {count}" if said else f"is fastest at {count} of {len(at)} points"
        said.append(f"{name} {where}{against}")
    return f"{', '.join(said)}."


def notes(report: Report) -> tuple[Note, ...]:
    """Why sides failed, what is not obvious of those that ran, and what could not be compared; equal lines as one."""
    found: dict[Note, dict[str, list[Point]]] = {}
    for row in report.rows:
        for note in _notes(row, report.config.scenario_of(row.side) != report.config.scenario):
            found.setdefault(note, {}).setdefault(row.side.name, []).append(row.point)
    number = len(points(report))
    lines = []
    for note, sides in found.items():
        who = ", ".join(f"{side}{_where(at, number)}" for side, at in sides.items())
        lines.append(Note(f"{who}{' failed' if note.failed else ''}: {note.text}", note.failed))
    return tuple(lines)


def versions(report: Report) -> tuple[str, ...]:
    """The packages of each side that ran."""
    lines = (
        f"{row.side.name}: {', '.join(f'{name} {version}' for name, version in row.measurement.versions.items())}"
        for row in report.rows
        if row.measurement and row.measurement.versions
    )
    return tuple(dict.fromkeys(lines))


def _verdict_of_point(report: Report, rows: Sequence[Row]) -> str:
    first, *others = sorted(rows, key=_mean)
    assert first.summary is not None  # as only rows that ran are given
    speed = f"{format_seconds(first.summary.mean)} a {step_word(report)} on average"
    if not others:
        return f"Only {first.side.name} ran: {speed}."
    second = others[0]
    assert second.summary is not None
    lead = speed_ratio(first.summary, second.summary)
    close = "" if lead.value - lead.spread > 1 else f", but {second.side.name} lies within the spread"
    against = f"{_times(first.ratio)} the speed of {report.reference}" if first.ratio else _ahead(first.summary, second)
    return f"{first.side.name} is fastest: {speed}, {against}{close}."


def _ahead(first: Summary, second: Row) -> str:
    assert second.summary is not None
    return f"{_times(speed_ratio(first, second.summary))} the speed of {second.side.name}"


def _times(ratio: Ratio) -> str:
    return f"{format_ratio(ratio)} times"


def _notes(row: Row, trains_from_inputs: bool) -> list[Note]:
    if row.reason is not None:
        return [Note(f"{row.reason}{f' (log: {row.log})' if row.log else ''}", failed=True)]
    found, m = [], row.measurement
    if trains_from_inputs:
        found.append(Note("keeps no features: each step trains from the inputs"))
    if m is not None and m.features is not None:
        once, size = format_seconds(m.features.seconds), size_text(m.features.bytes)
        found.append(Note(f"features take {once} a row, once, and {size} a row to keep"))
    if m is not None and m.provider_obtained != m.provider_requested:
        found.append(Note(f"'{m.provider_requested}' was asked for, {m.provider_obtained} runs"))
    if m is not None:
        for provider, names in m.fallback.items():
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            nodes = f"{len(names)} node{'s' if len(names) != 1 else ''}"
            found.append(Note(f"{nodes} fell back to {provider}: {', '.join(names[:_NAMES_SHOWN])}{more}"))
    if row.numerics is not None and row.numerics.reason is not None:
        found.append(Note(row.numerics.reason))
    return found


def _mean(row: Row) -> float:
    return row.summary.mean if row.summary else float("inf")


def _where(at: Sequence[Point], number: int) -> str:
    if number == 1:
        return ""
    return f" at all {number} points" if len(at) == number else f" at {'; '.join(map(str, at))}"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _count(number: int) -> str:
    """Three significant digits of a large number."""
    if number < 10_000:
        return f"{number:,}"
    for unit, scale in (("K", 1e3), ("M", 1e6)):
        if number < 999.5 * scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number / 1e9:,.3g}G"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
