"""What a graph of the native generator is fed and gives besides the tensors that live between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxft.arrays import Array
from onnxft.manifest import GraphFile, Port
from onnxft.runtime.engine import Hyper, Sums


def on_averages(graph: GraphFile) -> GraphFile:
    """The graph with the averages where it reads parameters."""
    inputs = (replace(p, role="average") if p.role == "parameter" else p for p in graph.inputs)
    return replace(graph, inputs=tuple(inputs))


def scalars(ports: tuple[Port, ...], hyper: Hyper, skipped: int, weight_sum: float | None = None) -> dict[str, Array]:
    """The scalar inputs of a training or update graph, `skipped` updates not counted."""
    values: dict[str, Array] = {}
    for port in ports:
        match port.role:
            case "lr":
                value: float | None = hyper.lr[port.group or ""]
            case "weight_decay":
                value = hyper.weight_decay[port.group or ""]
            case "step":
                value = hyper.step - skipped
            case "max_norm":
                value = hyper.max_norm
            case "max_value":
                value = hyper.max_value
            case "weight_sum":
                value = weight_sum
            case _:
                continue
        values[port.name] = np.array(value, port.dtype)
    return values


def sums_of(graph: GraphFile, results: Mapping[str, Any], scale: float = 1.0) -> Sums:
    """Loss, weight and metrics of a run, without the loss scale, read when asked for."""

    def read() -> tuple[float, float, dict[str, float]]:
        value = {
            p.name: float(results[p.name].numpy()) / scale
            for p in graph.outputs
            if p.role in ("loss_sum", "weight_sum", "metric")
        }
        metrics = {p.slot or p.name: value[p.name] for p in graph.outputs if p.role == "metric"}
        loss, weight = (next(value[p.name] for p in graph.outputs if p.role == r) for r in ("loss_sum", "weight_sum"))
        return loss, weight, metrics

    return Sums(read)
