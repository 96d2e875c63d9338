"""Which providers really run here: on each a training step is made, in a process of its own, and checked."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxft.runtime.engine import Placement
from onnxft.runtime.execution import Execution
from onnxft.runtime.isolate import last_line, run_isolated
from onnxft.runtime.missing import how_to_install, missing, offers
from onnxft.runtime.needs import Lack, Need
from onnxft.runtime.probe import Finding, read_findings, train_probe
from onnxft.runtime.providers import PROVIDERS, Provider

_LIMITS = {"tensorrt": 300.0, "nv-tensorrt-rtx": 300.0}
"""Seconds of a provider that compiles the graphs for the GPU it finds."""
_LIMIT = 60.0


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found out about one provider."""

    provider: str
    works: bool
    """Whether it trains in float32 with the right result."""
    obtained: str | None = None
    """The runtime's name of what ran."""
    devices: tuple[str, ...] = ()
    step_ms: float | None = None
    """Median milliseconds of a training step of the probe in float32."""
    precisions: tuple[Finding, ...] = ()
    """What was tried in each precision that the provider claims."""
    reasons: tuple[str, ...] = ()
    """Why it does not work; first what comes first."""
    remedies: tuple[str, ...] = ()
    """What would make it work: all of them."""
    needs: tuple[Need, ...] = ()
    """Versions wanted and found, where that is the question."""


def diagnose(time_limit: float | None = None) -> Iterator[Diagnosis]:
    """Try every provider of the table, in its order; one that fails, crashes or hangs is a diagnosis, never an error.

    Args:
        time_limit: seconds that a provider may take; None: 60, and 300 where graphs are compiled for a GPU.
    """
    for entry in PROVIDERS.values():
        yield _try(entry, time_limit or _LIMITS.get(entry.name, _LIMIT)) if offers(entry) else _absent(entry)


def open_probe(provider: str) -> Placement:
    """Run the training step in this process.

    Raises:
        ProviderError: the provider is absent, does not load, fails, or computes wrongly.
    """
    return train_probe(Execution(provider, threads=1)).placement


def _absent(entry: Provider) -> Diagnosis:
    lack = missing(entry)
    if lack is None:  # what was not offered is offered now
        return Diagnosis(entry.name, False, reasons=("it is not available",), remedies=(how_to_install(entry),))
    return Diagnosis(entry.name, False, reasons=lack.reasons, remedies=lack.steps, needs=lack.needs)


def _try(entry: Provider, time_limit: float) -> Diagnosis:
    with tempfile.TemporaryDirectory(prefix="onnxft-doctor-", ignore_cleanup_errors=True) as place:
        file, log = Path(place) / "findings", Path(place) / "output.log"
        ended = run_isolated(_command(entry.name, file), log, time_limit, setting="--time-limit")
        found = read_findings(file)
        if ended is not None and len(found) < len(entry.precisions):
            output = last_line(log)
            said = f"{ended}; its last output: {output}" if output else ended
            found.append(Finding(entry.precisions[len(found)], reason=f"{said}."))
    first = next((f for f in found if f.precision == "float32"), None) or Finding("float32", reason="no result.")
    if not first.reason:
        return Diagnosis(entry.name, True, entry.runtime_name, first.devices, first.step_ms, tuple(found))
    another = f"another version of its package or driver: {how_to_install(entry)}"
    lack = first.lack or Lack((first.reason.rstrip("."),), (another,))
    return Diagnosis(
        entry.name, False, precisions=tuple(found), reasons=lack.reasons, remedies=lack.steps, needs=lack.needs
    )


def _command(provider: str, findings: Path) -> list[str]:
    # -P: a file in the working directory must not stand in for a package.
    return [sys.executable, "-P", "-m", "onnxft.runtime.probe", provider, str(findings)]
