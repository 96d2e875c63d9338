"""Evaluation over any number of rows, batch by batch."""

from __future__ import annotations

import numpy as np

from onnxft.manifest import GraphFile, Manifest, Port
from onnxft.runtime.batches import check_batch, pad, parts, without_labels
from onnxft.runtime.engine import Array, Arrays, Engine
from onnxft.runtime.results import Scores, mean


def eval_graph(manifest: Manifest) -> GraphFile:
    """The evaluation graph of either generator."""
    return manifest.graph("ort_eval" if manifest.generator == "ort-training" else "eval")


def data_ports(manifest: Manifest) -> tuple[Port, ...]:
    """What a batch must hold: inputs and labels."""
    graph = eval_graph(manifest)
    return (*graph.named("input"), *graph.named("label"))


def evaluate(engine: Engine, batch: Arrays, *, labels: bool) -> Scores:
    """Weighted means over all rows, and the outputs; without `labels` only the outputs mean something.

    Raises:
        DataError: the batch does not fit the model.
    """
    manifest, size = engine.manifest, engine.batch_size
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    outputs: dict[str, list[Array]] = {}
    for start, part in parts(batch, size):
        complete, rows = check_batch(
            part, data_ports(manifest), manifest.loss, engine.dimensions, labels=labels, first_row=start
        )
        if not labels:
            complete |= without_labels(
                eval_graph(manifest).named("label"), rows, engine.dimensions, weights=engine.supports_weights
            )
        result = engine.evaluate(pad(complete, rows, size) if engine.supports_weights else complete)
        loss, weight = loss + result.loss_sum, weight + result.weight_sum
        for name, value in result.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        for name, array in result.outputs.items():
            outputs.setdefault(name, []).append(array[:rows])
    return Scores(
        mean(loss, weight),
        {name: mean(value, weight) for name, value in metrics.items()},
        {name: np.concatenate(arrays) for name, arrays in outputs.items()},
    )
