"""Metrics of predictions in numpy, with scikit-learn's definitions.

N rows, C classes. Labels and predicted classes (N,) are integers; targets and outputs are of any equal shape (N, ...).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxft.manifest import Loss

Array = NDArray[Any]

BETTER = {
    "loss": -1,
    "accuracy": 1,
    "balanced_accuracy": 1,
    "macro_f1": 1,
    "auc": 1,
    "mae": -1,
    "rmse": -1,
    "r2": 1,
}
"""1 where greater is better, -1 where smaller is."""


def default_metric(loss: Loss) -> str:
    """What chooses the best weights unless told otherwise."""
    return "balanced_accuracy" if loss.kind == "cross_entropy" else "loss"


def names(loss: Loss) -> list[str]:
    """Metrics that are measured for a loss, `loss` first."""
    if loss.kind == "mse":
        return ["loss", "mae", "rmse", "r2"]
    binary = ["auc"] if loss.num_classes == 2 else []
    return ["loss", "accuracy", "balanced_accuracy", "macro_f1", *binary]


def measure(loss: Loss, output: Array, labels: Array) -> dict[str, float]:
    """Every metric of `names` but the loss.

    Args:
        loss: the loss fixed at export.
        output: what the loss reads: scores (N, C, ...), the classes along `class_axis`, outputs (N, ...) for values.
        labels: (N, ...) class numbers or target values.
    """
    if loss.kind == "mse":
        return {"mae": mae(labels, output), "rmse": rmse(labels, output), "r2": r2(labels, output)}
    if loss.shift:
        output, labels = output[:, : -loss.shift], labels[:, loss.shift :]
    counted = np.full(labels.shape, True) if loss.ignore_index is None else labels != loss.ignore_index
    by_label = np.moveaxis(output, loss.class_axis, -1)[counted]
    classes, flat = np.argmax(by_label, axis=-1), labels[counted]
    scores = {
        "accuracy": accuracy(flat, classes),
        "balanced_accuracy": balanced_accuracy(flat, classes),
        "macro_f1": macro_f1(flat, classes),
    }
    if loss.num_classes == 2:
        wide = by_label.astype(np.float64)
        scores["auc"] = auc(flat, wide[:, 1] - wide[:, 0])
    return scores


# ----- Classes


def accuracy(labels: Array, classes: Array) -> float:
    """mean(labels == classes)"""
    return float(np.mean(labels == classes))


def balanced_accuracy(labels: Array, classes: Array) -> float:
    """Mean over the classes among the labels of: correct rows of the class / rows of the class"""
    return float(np.mean([np.mean(classes[labels == c] == c) for c in np.unique(labels)]))


def macro_f1(labels: Array, classes: Array) -> float:
    """Mean over the classes that are labels or predicted of: 2 tp / (2 tp + fp + fn)"""
    present = np.union1d(labels, classes)
    # 2 tp + fp + fn counts every row of the class once as label and once as prediction.
    tp = np.array([np.sum((labels == c) & (classes == c)) for c in present])
    either = np.array([np.sum(labels == c) + np.sum(classes == c) for c in present])
    return float(np.mean(2 * tp / either))


def auc(labels: Array, scores: Array) -> float:
    """(sum of the positives' ranks - P (P + 1) / 2) / (P Q), equal scores sharing their mean rank.

    `labels` (N,) are 0 or 1, `scores` (N,) grow towards 1; P positives and Q negatives. NaN where a class is missing.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    P = int(np.sum(labels == 1))
    Q = len(labels) - P
    if P == 0 or Q == 0:
        return float("nan")
    return float((ranks[labels == 1].sum() - P * (P + 1) / 2) / (P * Q))


# ----- Values


def mae(targets: Array, outputs: Array) -> float:
    """mean(|outputs - targets|)"""
    return float(np.mean(np.abs(_difference(targets, outputs))))


def rmse(targets: Array, outputs: Array) -> float:
    """sqrt(mean((outputs - targets)^2))"""
    return float(np.sqrt(np.mean(np.square(_difference(targets, outputs)))))


def r2(targets: Array, outputs: Array) -> float:
    """Mean over columns of: 1 - sum((outputs - targets)^2) / sum((targets - mean(targets))^2)

    A column without spread counts 1 where it is met exactly, else 0. NaN for fewer than two rows.
    """
    if len(targets) < 2:
        return float("nan")
    residual = np.square(_difference(targets, outputs)).sum(axis=0)
    columns = targets.reshape(len(targets), -1).astype(np.float64)
    spread = np.square(columns - columns.mean(axis=0)).sum(axis=0)
    flat = spread == 0
    return float(np.mean(np.where(flat, residual == 0, 1 - residual / np.where(flat, 1, spread))))


def _difference(targets: Array, outputs: Array) -> Array:
    """Outputs - targets as (N, columns) in float64."""
    rows = len(targets)
    difference: Array = outputs.reshape(rows, -1).astype(np.float64) - targets.reshape(rows, -1)
    return difference
