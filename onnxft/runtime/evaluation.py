"""Evaluation over any number of rows, batch by batch."""

from __future__ import annotations

import numpy as np

from onnxft.errors import DataError
from onnxft.manifest import SAMPLE_WEIGHTS, GraphFile, Manifest, Port
from onnxft.runtime.batches import check_batch, pad, parts, sizes_of, why_unweighted, without_labels
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
    """Weighted means over all rows, and the outputs of one row for each; without `labels` only these mean something.

    What only a loss of the model's own reads may be missing then.

    Raises:
        DataError: the batch does not fit the model.
    """
    manifest, size = engine.manifest, engine.batch_size
    ports = data_ports(manifest)
    left_out: tuple[Port, ...] = ()
    unread: list[str] = []
    if not labels:
        unread = [name for name in manifest.loss.inputs if name not in batch]
        left_out = tuple(p for p in ports if p.role == "label" or p.name in unread)
        ports = tuple(p for p in ports if p not in left_out)
    sizes = sizes_of(batch, ports, engine.sizes)
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    outputs: dict[str, list[Array]] = {}
    for start, part in parts(batch, size):
        complete, rows = check_batch(part, ports, manifest.loss, sizes, labels=labels, first_row=start)
        if not labels:
            complete |= without_labels(left_out, rows, sizes, weights=engine.supports_weights)
        elif manifest.loss.scalar:
            _require_equal(complete, manifest)
        # A loss over the whole batch would count padding; the engine takes fewer rows as they are.
        short = labels and manifest.loss.scalar
        result = engine.evaluate(pad(complete, rows, rows if short else size) if engine.supports_weights else complete)
        loss, weight = loss + result.loss_sum, weight + result.weight_sum
        for name, value in result.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        for name, array in result.outputs.items():
            if array.ndim == 0 or (unread and name == manifest.loss.output):
                continue  # a number for the batch; a loss of targets that were not given
            outputs.setdefault(name, []).append(array[:rows])
    return Scores(
        mean(loss, weight),
        {name: mean(value, weight) for name, value in metrics.items()},
        {name: np.concatenate(arrays) for name, arrays in outputs.items()},
        weight,
    )


def _require_equal(batch: Arrays, manifest: Manifest) -> None:
    weights = batch.get(SAMPLE_WEIGHTS)
    if weights is not None and (weights != 1).any():
        raise DataError(
            f"'{SAMPLE_WEIGHTS}' are not all 1, but {why_unweighted(manifest)}. Leave them out, or let the model give "
            "one loss for each row."
        )
