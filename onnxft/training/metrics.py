"""Metrics of predictions in numpy, with scikit-learn's definitions.

N rows (or positions of rows), C classes, L labels of one row. `reduce` keeps of each batch what the metrics need,
`join` puts the parts together, `measure` takes the metrics of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxft.arrays import Array
from onnxft.manifest import Loss

Reduced = dict[str, Array]
"""Arrays of equally many rows: `labels`, `predicted` and, for an AUC, `scores`; of values `labels` and `outputs`."""

BETTER = {
    "loss": -1,
    "perplexity": -1,
    "accuracy": 1,
    "balanced_accuracy": 1,
    "macro_f1": 1,
    "micro_f1": 1,
    "auc": 1,
    "mae": -1,
    "rmse": -1,
    "r2": 1,
}
"""1 where greater is better, -1 where smaller is."""

_MOST_SCORED = 100
"""Classes up to which the scores of every class are kept for the AUC."""
_VALUES = ("mse", "l1", "huber")


def default_metric(loss: Loss) -> str:
    """What chooses the best weights unless told otherwise."""
    if loss.shift:
        return "loss"
    measured = names(loss)
    if loss.kind == "kl_div":
        return "loss"
    return next((name for name in ("balanced_accuracy", "macro_f1") if name in measured), "loss")


def names(loss: Loss) -> list[str]:
    """Metrics that are measured for a loss, `loss` first."""
    scored = ["auc"] if _scored(loss) else []
    if loss.kind in _VALUES:
        return ["loss", "mae", "rmse", "r2"]
    if loss.kind == "cross_entropy":
        # The loss is that of the labels alone only without weights and smoothing.
        plain = loss.shift and not loss.class_weights and not loss.label_smoothing
        first = ["loss", "perplexity"] if plain else ["loss"]
        return [*first, "accuracy", "balanced_accuracy", "macro_f1", *scored]
    if loss.kind == "bce_with_logits":
        kinds = ["accuracy", "balanced_accuracy", "macro_f1"] if _binary(loss) else ["accuracy", "macro_f1", "micro_f1"]
        return ["loss", *kinds, *scored]
    return ["loss", "accuracy"] if loss.kind == "kl_div" else ["loss"]


def _binary(loss: Loss) -> bool:
    return loss.num_classes in (None, 1)


def _scored(loss: Loss) -> bool:
    """Whether scores are kept: not of a vocabulary, and not of every class at every pixel."""
    if loss.kind == "bce_with_logits":
        return not loss.per_position and (_binary(loss) or (loss.num_classes or 0) <= _MOST_SCORED)
    classes = loss.num_classes or 0
    several = 2 < classes <= _MOST_SCORED and not loss.per_position
    return loss.kind == "cross_entropy" and not loss.shift and (classes == 2 or several)


def reduce(loss: Loss, output: Array | None, labels: Array | None) -> Reduced:
    """What the metrics need of one batch.

    Args:
        loss: the loss fixed at export.
        output: what the loss reads: scores (N, C, ...), the classes along `class_axis`, outputs (N, ...) for values;
            None for a loss of the model's own, which has no further metrics.
        labels: (N, ...) as the loss takes them.
    """
    if loss.kind == "model":
        return {}
    assert output is not None and labels is not None
    if loss.kind in _VALUES:
        return {"labels": labels.reshape(len(labels), -1), "outputs": output.reshape(len(output), -1)}
    if loss.kind == "bce_with_logits":
        return _reduce_binary(loss, output, labels)
    if loss.kind == "kl_div":
        classes = (np.argmax(a, axis=loss.class_axis).reshape(-1) for a in (labels, output))
        return dict(zip(("labels", "predicted"), classes, strict=True))
    if loss.shift:
        output, labels = output[:, : -loss.shift], labels[:, loss.shift :]
    counted = np.full(labels.shape, True) if loss.ignore_index is None else labels != loss.ignore_index
    by_label = np.moveaxis(output, loss.class_axis, -1)[counted]
    reduced = {"labels": labels[counted], "predicted": np.argmax(by_label, axis=-1)}
    if _scored(loss):
        wide = by_label.astype(np.float64)
        reduced["scores"] = wide[:, 1] - wide[:, 0] if loss.num_classes == 2 else _softmax(wide)
    return reduced


def _reduce_binary(loss: Loss, output: Array, labels: Array) -> Reduced:
    """(N,) for one label a row, (N, L) for several; a label between 0 and 1 is the nearer one."""
    labels = labels.reshape(output.shape)
    if not _binary(loss):
        output, labels = (np.moveaxis(a, loss.class_axis, -1) for a in (output, labels))
    flat = (-1,) if _binary(loss) else (-1, loss.num_classes or 1)
    output = output.reshape(flat)
    reduced = {"labels": labels.reshape(flat) >= 0.5, "predicted": output > 0}
    return {**reduced, "scores": output} if _scored(loss) else reduced


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def join(parts: Sequence[Reduced]) -> Reduced:
    """The reductions of batches as that of all their rows."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure(loss: Loss, reduced: Mapping[str, Array], value: float) -> dict[str, float]:
    """Every metric of `names`.

    Args:
        loss: the loss fixed at export.
        reduced: from `reduce`, or from `join`.
        value: of the loss, its mean over all rows.
    """
    return {name: _metric(name, loss, reduced, value) for name in names(loss)}


def _metric(name: str, loss: Loss, reduced: Mapping[str, Array], value: float) -> float:
    if name == "loss":
        return value
    if name == "perplexity":
        return math.exp(value) if value < math.log(np.finfo(np.float64).max) else math.inf
    if name in ("mae", "rmse", "r2"):
        return {"mae": mae, "rmse": rmse, "r2": r2}[name](reduced["labels"], reduced["outputs"])
    labels = reduced["labels"]
    if name == "auc":
        scores = reduced["scores"]
        if scores.ndim == 1:
            return auc(labels, scores)
        return mean_auc(labels if labels.ndim == 2 else labels[:, np.newaxis] == np.arange(scores.shape[1]), scores)
    of_classes = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}
    of_labels = {"accuracy": accuracy, "macro_f1": label_macro_f1, "micro_f1": label_micro_f1}
    return (of_labels if labels.ndim == 2 else of_classes)[name](labels, reduced["predicted"])


def confusion(labels: Array, predicted: Array, num_classes: int) -> NDArray[np.int64]:
    """(C, C) counts: the row is the label, the column what was predicted; both (N,) from 0 to C - 1."""
    places = labels.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


# ----- Classes


def accuracy(labels: Array, classes: Array) -> float:
    """mean(labels == classes)"""
    return _mean(labels == classes)


def balanced_accuracy(labels: Array, classes: Array) -> float:
    """Mean over the classes among the labels of: correct rows of the class / rows of the class"""
    present, place = np.unique(labels, return_inverse=True)
    correct = np.bincount(place, weights=labels == classes, minlength=len(present))
    return _mean(correct / np.bincount(place, minlength=len(present)))


def macro_f1(labels: Array, classes: Array) -> float:
    """Mean over the classes that are labels or predicted of: 2 tp / (2 tp + fp + fn)"""
    present, place = np.unique(np.concatenate([labels, classes]), return_inverse=True)
    # 2 tp + fp + fn counts every row of the class once as label and once as prediction.
    either = np.bincount(place, minlength=len(present))
    tp = np.bincount(place[: len(labels)], weights=labels == classes, minlength=len(present))
    return _mean(2 * tp / either)


def _mean(values: Array) -> float:
    """NaN for no value."""
    return float(np.mean(values)) if values.size else math.nan


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


# ----- Several labels a row: labels, predicted (N, L) booleans, scores (N, L)


def mean_auc(labels: Array, scores: Array) -> float:
    """Mean over the columns that hold both values of: auc. With one column for each class it is one-vs-rest, macro."""
    columns = np.array([auc(labels[:, i], scores[:, i]) for i in range(labels.shape[1])])
    return _mean(columns[~np.isnan(columns)])


def label_macro_f1(labels: Array, predicted: Array) -> float:
    """Mean over the columns of: 2 tp / (2 tp + fp + fn), 0 where there is nothing to count"""
    tp, either = np.sum(labels & predicted, axis=0), np.sum(labels, axis=0) + np.sum(predicted, axis=0)
    return _mean(2 * tp / np.maximum(either, 1))


def label_micro_f1(labels: Array, predicted: Array) -> float:
    """2 tp / (2 tp + fp + fn) over all columns, 0 where there is nothing to count"""
    return float(2 * np.sum(labels & predicted) / max(int(np.sum(labels) + np.sum(predicted)), 1))


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
