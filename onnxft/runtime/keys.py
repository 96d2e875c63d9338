"""Names of the tensors that live between steps.

A *key* names such a tensor independently of the graph: `weight` (parameter), `weight/exp_avg`
(state), `weight/gradient` (accumulator), `weight/average` (average), `bn.running_mean/statistic` (buffer).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from onnxft.manifest import GraphFile, Port

ACCUMULATOR_SLOT = "gradient"
STATISTIC_SLOT = "statistic"
AVERAGE_SLOT = "average"
STATE_SLOTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")

Family = Literal["parameter", "state", "accumulator", "statistic", "average"]
"""Tensors that change places together, but for those that every graph writes in place."""


def key_of(port: Port) -> str | None:
    """The key of the tensor behind a port; None for what is fed or read each time."""
    match port.role:
        case "parameter":
            return port.parameter
        case "buffer":
            return f"{port.buffer}/{STATISTIC_SLOT}"
        case "state":
            return f"{port.parameter}/{port.slot}"
        case "accumulator" | "gradient":
            return f"{port.parameter}/{ACCUMULATOR_SLOT}"
        case "average":
            return f"{port.parameter}/{AVERAGE_SLOT}"
        case _:
            return None


def family(key: str) -> Family:
    """The family of a tensor."""
    match key.rpartition("/")[2]:
        case "gradient":
            return "accumulator"
        case "statistic":
            return "statistic"
        case "average":
            return "average"
        case slot if slot in STATE_SLOTS:
            return "state"
        case _:
            return "parameter"


def always_in_place(graphs: Iterable[GraphFile]) -> frozenset[str]:
    """Keys of what each of the graphs that write it writes over the old; accumulators have zeros beside them anyway."""
    places = written(port for graph in graphs for port in graph.outputs)
    return frozenset(key for key, in_place in places.items() if in_place and family(key) != "accumulator")


def written(outputs: Iterable[Port]) -> dict[str, bool]:
    """{key: whether all its rows may be written over the old} of what outputs write."""
    places: dict[str, bool] = {}
    for port in outputs:
        if (key := key_of(port)) is not None:
            places[key] = places.get(key, True) and port.in_place
    return places
