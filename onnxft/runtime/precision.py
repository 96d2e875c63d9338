"""Which precision a provider can do here, and how each graph of a training run is executed.

Below float32 only `trunk`, `gradients` and `eval` are computed, as torch's autocast does: parameters, accumulators and
optimizer state are float32, and so are the graphs `update` and `average`, whose results differ from what they replace
by less than a lower precision can say. So the fused graph `train` runs in float32 alone, and on one provider alone:
another may run the updates (see `Provider.updates_on`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxft.errors import ProviderError
from onnxft.manifest import GraphFile, GraphRole, Manifest
from onnxft.runtime.execution import Execution
from onnxft.runtime.providers import Provider, provider

_CPU_INFO = Path("/proc/cpuinfo")
_LOWERED: tuple[GraphRole, ...] = ("trunk", "gradients", "eval")


def execution_of(role: GraphRole, asked: Execution) -> Execution:
    """How the graph of a role runs where a training run was `asked` for."""
    if role in _LOWERED:
        return asked
    other = provider(asked.provider).updates_on
    return Execution(other, threads=asked.threads) if other else replace(asked, precision="float32")


def updates_apart(asked: Execution) -> bool:
    """Whether a step runs `gradients` and `update` instead of `train`."""
    return asked.precision != "float32" or bool(provider(asked.provider).updates_on)


def graph_of(role: GraphRole, manifest: Manifest, asked: Execution) -> GraphFile:
    """The graph that a role runs, of a precision and a kind; ArtifactError where the artifact lacks that precision.

    Where another provider updates, the accumulators are its own: the batch's gradients come to them as they are.
    """
    if role == "gradients" and provider(asked.provider).updates_on and "batch_gradients" in manifest.graphs:
        role = "batch_gradients"
    precision = execution_of(role, asked).precision if provider(asked.provider).lowers_by == "graph" else "float32"
    if role == "trunk" and precision != "float32" and role not in manifest.half.get(precision, {}):
        precision = "float32"  # it has no products that the precision could lower
    return manifest.graph(role, precision, recompute=asked.recompute)


def require_precision(entry: Provider, asked: Execution) -> None:
    """ProviderError where the provider, or this processor, does not compute in the precision that was asked for."""
    if asked.precision not in entry.precisions:
        raise ProviderError(
            f"provider '{entry.name}' does not compute in {asked.precision}; it can do {', '.join(entry.precisions)}."
        )
    if asked.precision == "float32" or not entry.processor_flags:
        return
    device = asked.options.get("device_type", "CPU")
    if device != "CPU":
        raise ProviderError(
            f"provider '{entry.name}' computes in {asked.precision} on its device CPU only, and device_type {device} "
            "was asked for. Leave precision or device_type out."
        )
    flags = processor_flags()
    if flags is not None and not flags & {*entry.processor_flags}:
        raise ProviderError(
            f"provider '{entry.name}' computes in {asked.precision} on processors that have "
            f"{' or '.join(entry.processor_flags)} (flags in {_CPU_INFO}), and this one has neither. Leave precision "
            "out: float32 runs here."
        )


def processor_flags() -> frozenset[str] | None:
    """What this processor can do, as Linux spells it; None where that cannot be read."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(found, ())) or None
