"""A guard against regressions: each provider's ratios to torch in the benchmark tasks, against stored ones.

`python tools/benchmark_tasks.py ... --write-baseline FILE` stores them with what produced them, `--baseline FILE`
compares later ones, prints a table, and ends with 10 where one is worse by more than the tolerance. Ratios of one
machine say nothing of another: a baseline of another processor or number of threads is refused. It is run by hand or
nightly, on a machine that does nothing else; no test takes times.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from benchmark_ratios import Baseline, Origin, Ratios, measured, problems
from benchmark_summary import Runs
from benchmark_targets import Trained

from onnxft.benchmark.units import digits
from onnxft.errors import ConfigError, DataError, ExitStatus
from onnxft.files import write_atomically

TIME_TOLERANCE, MEMORY_TOLERANCE = 15.0, 5.0
"""Percent. Times vary with the machine's load and clock, memory hardly."""
WORSE = ExitStatus.SLOWER
"""Exit code."""
COLUMNS = ("Task", "Side", "Of", "Stored", "Now", "Change", "Verdict")

Verdict = Literal["worse", "as before", "better", "new", "not measured"]


@dataclass(frozen=True)
class Line:
    """A ratio beside the stored one."""

    task: str
    side: str
    of: str
    """`time` or `memory`"""
    stored: float | None
    now: float | None
    verdict: Verdict
    reason: str = ""
    """Why there is no ratio."""

    @property
    def cells(self) -> tuple[str, ...]:
        """As `COLUMNS` names them."""
        known = self.stored is not None and self.now is not None
        change = f"{100 * (self.now / self.stored - 1):+.1f} %" if self.stored and self.now and known else "-"
        verdict = f"**{self.verdict}**" if self.verdict == "worse" else self.verdict
        numbers = ("-" if v is None else digits(v) for v in (self.stored, self.now))
        return (self.task, self.side, self.of, *numbers, change, f"{verdict}{self.reason and f': {self.reason}'}")


# ----- the command -----


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the guard."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--baseline", type=Path, metavar="FILE", help="compare the ratios to torch with stored ones")
    either.add_argument("--write-baseline", type=Path, metavar="FILE", help="store the ratios to torch")
    for name, default in (("time", TIME_TOLERANCE), ("memory", MEMORY_TOLERANCE)):
        words = f"by which a ratio of {name} may be worse than the stored one [{default:g}]"
        parser.add_argument(f"--{name}-tolerance", type=float, default=default, metavar="PERCENT", help=words)


def guard(options: argparse.Namespace, runs: Runs, parts: Mapping[str, Trained]) -> None:
    """Write the baseline of the runs, or compare them with one; nothing where neither was asked for.

    SystemExit with `WORSE` where a ratio is worse; ConfigError and DataError where it cannot be said.
    """
    if options.write_baseline is not None:
        write_atomically(options.write_baseline, measured(runs, parts, strict=True).to_json())
        print(f"'{options.write_baseline}' is written.")
    elif options.baseline is not None:
        stored, now = read_baseline(options.baseline), measured(runs, parts)
        check_machine(options.baseline, stored.origin, now.origin.cpu, now.origin.threads)
        tolerances = {"time": options.time_tolerance, "memory": options.memory_tolerance}
        lines = compare(stored, now, problems(runs, parts), tolerances)
        print(table(options.baseline, stored.origin, now.origin, lines, tolerances))
        if all(line.verdict in ("new", "not measured") for line in lines):
            raise DataError(f"none of the ratios in '{options.baseline}' was measured: choose its tasks and sides.")
        if any(line.verdict == "worse" for line in lines):
            raise SystemExit(WORSE)


def check_options(options: argparse.Namespace, cpu: str) -> None:
    """Raise before anything is measured what `guard` would raise afterwards, as far as it is known."""
    for name in ("time", "memory"):
        if not 0 <= getattr(options, f"{name}_tolerance") < 100:
            raise ConfigError(f"--{name}-tolerance is {getattr(options, f'{name}_tolerance'):g}: it is from 0 to 100.")
    if options.baseline is not None:
        stored = read_baseline(options.baseline)
        if options.summary is None:
            check_machine(options.baseline, stored.origin, cpu, options.threads)


def read_baseline(file: Path) -> Baseline:
    """What `to_json` wrote; DataError where there is no such file, or something else in it."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Baseline)
    except (OSError, msgspec.MsgspecError) as err:
        raise DataError(f"'{file}' is no baseline: {err}. Write one with --write-baseline.") from err


def check_machine(file: Path, stored: Origin, cpu: str, threads: int) -> None:
    """ConfigError where the baseline is of another processor or number of threads."""
    if (stored.cpu, stored.threads) != (cpu, threads):
        raise ConfigError(
            f"the baseline '{file}' is of {stored.threads} threads of '{stored.cpu}', these runs are of {threads} "
            f"threads of '{cpu}': their ratios to torch differ without any regression. Write a baseline of this "
            "machine with --write-baseline."
        )


# ----- the comparison -----


def compare(
    stored: Baseline, now: Baseline, problems: Mapping[tuple[str, str], str], tolerances: Mapping[str, float]
) -> list[Line]:
    """A line for each ratio of either, in the order of the stored ones; `tolerances` in percent.

    A side that has stored ratios and failed or is wrong now is worse than any. What was not measured is told, and no
    regression.
    """
    tasks = {task: {**stored.ratios.get(task, {}), **now.ratios.get(task, {})} for task in stored.ratios | now.ratios}
    pairs = dict.fromkeys([*((task, side) for task, sides in tasks.items() for side in sides), *problems])
    return [line for pair in pairs for line in _lines(pair, stored, now, problems.get(pair, ""), tolerances)]


def _lines(
    pair: tuple[str, str], stored: Baseline, now: Baseline, problem: str, tolerances: Mapping[str, float]
) -> Iterator[Line]:
    task, side = pair
    nothing = Ratios(None, None)
    old, new = (b.ratios.get(task, {}).get(side, nothing) for b in (stored, now))
    if problem and old == nothing:
        yield Line(task, side, "time", None, new.time, "new", problem)
        return
    for of, a, b, gain in (("time", old.time, new.time, 1), ("memory", old.memory, new.memory, -1)):
        if a is not None or b is not None:
            verdict: Verdict = "worse" if problem else _verdict(a, b, gain, tolerances[of] / 100)
            yield Line(task, side, of, a, b, verdict, problem)


def _verdict(stored: float | None, now: float | None, gain: int, tolerance: float) -> Verdict:
    """`gain` is 1 where more is better, and -1 where less is."""
    if stored is None or now is None:
        return "new" if stored is None else "not measured"
    better = gain * (now / stored - 1)
    return "worse" if better < -tolerance else "better" if better > tolerance else "as before"


def table(file: Path, stored: Origin, now: Origin, lines: Sequence[Line], tolerances: Mapping[str, float]) -> str:
    """The comparison in Markdown."""
    changed = [
        f"{name} {stored.versions.get(name, '-')} -> {now.versions.get(name, '-')}"
        for name in sorted(stored.versions | now.versions)
        if stored.versions.get(name) != now.versions.get(name)
    ]
    allowed = " and ".join(f"{tolerance:g} % of {of}" for of, tolerance in tolerances.items())
    counts = Counter(line.verdict for line in lines)
    return "\n".join(
        [
            "## Against the baseline",
            "",
            f"Stored in '{file}': {stored.started}, runs: {stored.runs}, commit {stored.commit}.",
            f"Now: {now.started}, runs: {now.runs}, commit {now.commit}.",
            f"{now.cpu}, {now.threads} threads. Time is torch's over the side's, memory the side's over torch's.",
            f"Worse is more than {allowed}.",
            *(["", f"Other versions, which move ratios too: {'; '.join(changed)}."] if changed else []),
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---|---|---:|---:|---:|---|",
            *(f"| {' | '.join(line.cells)} |" for line in lines),
            "",
            f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}.",
        ]
    )
