"""Sums from the means that onnxruntime-training's own losses give: a standalone artifact has no others."""

from __future__ import annotations

import numpy as np

from onnxft.arrays import Arrays
from onnxft.manifest import GraphFile, Manifest


def mean_weight(manifest: Manifest, batch: Arrays) -> float:
    """By what the loss of a batch was divided: its labels, or the weights of their classes, that count; else its rows.

    A row of weight 1 is all that its losses know.
    """
    loss, labels = manifest.loss, manifest.graph("ort_training").named("label")
    if not labels:
        return float(len(batch[manifest.graph("ort_training").named("input")[0].name]))
    values = batch[labels[0].name]
    if loss.kind != "cross_entropy":
        return float(values.size)
    counted = values if loss.ignore_index is None else values[values != loss.ignore_index]
    return float(np.sum(np.asarray(loss.class_weights)[counted])) if loss.class_weights else float(counted.size)


def mean_sums(
    manifest: Manifest, graph: GraphFile, results: Arrays, batch: Arrays
) -> tuple[float, float, dict[str, float]]:
    """Loss sum, weight sum and {metric: sum} of a pass over the graph; `results` holds its mean loss and outputs."""
    loss, weight = manifest.loss, mean_weight(manifest, batch)
    # The mean over no label is NaN; in a part of an evaluation it must not spoil the others.
    total = float(results[graph.named("loss", "outputs")[0].name]) * weight if weight else 0.0
    if loss.kind != "cross_entropy" or loss.class_weights or loss.output not in results:
        return total, weight, {}
    labels = batch[graph.named("label")[0].name]
    correct = np.argmax(results[loss.output], axis=loss.class_axis) == labels
    if loss.ignore_index is not None:
        correct &= labels != loss.ignore_index
    return total, weight, {"accuracy": float(np.sum(correct))}
