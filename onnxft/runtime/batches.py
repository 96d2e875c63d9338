"""From a user's batch to a complete one: checked, padded to the fixed size, random inputs drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import DataError, near
from onnxft.manifest import BATCH, LABELS, SAMPLE_WEIGHTS, Loss, Manifest, Port
from onnxft.runtime.sizes import fixed_shape, has_shape, spelled

_SUM_TOLERANCE = 1e-3
"""Of probabilities from 1: what float16 and files of a few digits leave."""


def check_batch(
    batch: Arrays,
    ports: tuple[Port, ...],
    loss: Loss,
    sizes: Mapping[str, int],
    *,
    labels: bool = True,
    first_row: int = 0,
) -> tuple[dict[str, Array], int]:
    """The arrays of a batch in the element types of the ports, and its number of rows.

    Args:
        batch: {port name: (rows, ...) array}, optionally with `sample_weights` (rows,).
        ports: input and label ports.
        loss: says which labels there are.
        sizes: {symbolic dimension: its size in the session}; that of the batch is not asked for.
        labels: whether label ports must be present, and weights may be.
        first_row: number of the batch's first row in the data set, for messages.

    Raises:
        DataError: a name, shape, element type or value does not fit; names the array, the reason and the row.
    """
    wanted = {p.name: p for p in ports if labels or p.role != "label"}
    known = [*wanted, SAMPLE_WEIGHTS] if labels else list(wanted)
    for name in batch:
        if name not in known:
            raise DataError(f"the model has no input '{name}'.{near(name, known)}")
    for name in wanted:
        if name not in batch:
            raise DataError(f"the batch lacks '{name}'; it has {', '.join(repr(n) for n in batch) or 'nothing'}.")
    arrays = {n: _label(np.asarray(batch[n]), p, loss) if p.role == "label" else batch[n] for n, p in wanted.items()}
    checked = {name: _typed(name, np.asarray(arrays[name]), port, sizes, first_row) for name, port in wanted.items()}
    rows = {name: len(array) for name, array in checked.items()}
    count = next(iter(rows.values()))
    if any(n != count for n in rows.values()):
        raise DataError(f"arrays of one batch must have equally many rows, here {rows}.")
    if count == 0:
        raise DataError("the batch has no rows.")
    for name, port in wanted.items():
        if port.role == "label":
            check_labels(name, checked[name], loss, first_row)
    if SAMPLE_WEIGHTS in batch:
        checked[SAMPLE_WEIGHTS] = _weights(np.asarray(batch[SAMPLE_WEIGHTS]), count)
    return checked, count


def check_labels(name: str, labels: Array, loss: Loss, first_row: int = 0) -> None:
    """DataError for a class label that is no class and not ignored (the runtimes would read other memory),
    a binary one outside [0, 1], and for probabilities that are none.
    """
    if loss.kind in ("bce_with_logits", "kl_div"):
        _check_probabilities(name, labels, loss, first_row)
    if loss.kind != "cross_entropy" or loss.num_classes is None:
        return
    bad = np.argwhere(((labels < 0) | (labels >= loss.num_classes)) & (labels != loss.ignore_index))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        ignored = "" if loss.ignore_index is None else f", and {loss.ignore_index} does not count"
        raise DataError(
            f"'{name}' has the value {labels[where]} at row {first_row + where[0]}; classes are 0 to "
            f"{loss.num_classes - 1}{ignored}. Map the labels to that range, or export the model with more classes."
        )


def _check_probabilities(name: str, labels: Array, loss: Loss, first_row: int) -> None:
    bad = np.argwhere((labels < 0) | (labels > 1))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        at = [first_row + where[0], *where[1:]]
        raise DataError(
            f"'{name}' has the value {labels[where]} at {at} (row {at[0]}); {loss.kind} takes labels from 0 to 1."
        )
    if loss.kind == "kl_div":
        sums = labels.sum(axis=loss.class_axis, dtype=np.float64)
        bad = np.argwhere(np.abs(sums - 1) > _SUM_TOLERANCE)
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            raise DataError(
                f"'{name}' has probabilities that add up to {sums[where]:.6g} at row {first_row + where[0]}; kl_div "
                f"takes a distribution over the classes (axis {loss.class_axis}). Divide each row by its sum."
            )


def require_weight(batch: Arrays, loss: Loss) -> None:
    """DataError where no row or no label of a checked batch counts: there is no mean gradient then."""
    weights = batch.get(SAMPLE_WEIGHTS)
    if weights is not None and not weights.sum() > 0:
        raise DataError(f"all {len(weights)} rows of the batch have weight 0, so there is no mean gradient.")
    if loss.kind != "cross_entropy" or (loss.ignore_index is None and not loss.class_weights):
        return
    labels = batch[LABELS][:, loss.shift :] if loss.shift else batch[LABELS]
    counts = np.full(labels.shape, True) if loss.ignore_index is None else labels != loss.ignore_index
    if loss.class_weights:
        counts[counts] = np.asarray(loss.class_weights)[labels[counts]] > 0
    if weights is not None:
        counts = counts[weights > 0]
    if not counts.any():
        reasons = [] if loss.ignore_index is None else [f"is {loss.ignore_index}, which does not count"]
        reasons += ["belongs to a class of weight 0"] if loss.class_weights else []
        raise DataError(
            f"each label of the batch {' or '.join(reasons)}, so there is no mean gradient. Leave such rows out, or "
            "use a larger batch."
        )


def pad(batch: Arrays, rows: int, size: int) -> dict[str, Array]:
    """The batch with `size` rows: the last real row repeated with weight 0.

    Rows of zeros could give NaN in the model, and 0 × NaN is NaN.
    """
    weights = batch.get(SAMPLE_WEIGHTS)
    weights = np.ones(rows, np.float32) if weights is None else weights
    if rows == size:
        return {**batch, SAMPLE_WEIGHTS: weights}
    padded = {
        n: np.concatenate([a, np.repeat(a[-1:], size - rows, axis=0)]) for n, a in batch.items() if n != SAMPLE_WEIGHTS
    }
    return {**padded, SAMPLE_WEIGHTS: np.concatenate([weights, np.zeros(size - rows, np.float32)])}


def why_unweighted(manifest: Manifest) -> str:
    """The reason for which rows are not weighted in training, as the first clause of a sentence."""
    if manifest.buffers:
        layer = manifest.buffers[0].layer
        return f"BatchNorm '{layer}' trains on the statistics of the batch, which padding or weights would falsify"
    if manifest.loss.scalar:
        return f"the model computes the loss '{manifest.loss.output}' itself, as one number for the whole batch"
    return f"the '{manifest.generator}' generator cannot weight rows here: a standalone loss is a mean over the labels"


def parts(batch: Arrays, size: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """(first row, {name: at most `size` rows}) one after the other; at least one part."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    rows = max((len(a) for a in arrays.values() if a.ndim), default=0)
    for start in range(0, max(rows, 1), size):
        yield start, {name: array[start : start + size] if array.ndim else array for name, array in arrays.items()}


def without_labels(ports: tuple[Port, ...], rows: int, sizes: Mapping[str, int], *, weights: bool) -> dict[str, Array]:
    """Zero labels, with weight 0 where `weights`: for a batch of which only the outputs are asked for."""
    zeros: dict[str, Array] = {p.name: np.zeros(fixed_shape(p, {**sizes, BATCH: rows}), p.dtype) for p in ports}
    return {**zeros, SAMPLE_WEIGHTS: np.zeros(rows, np.float32)} if weights else zeros


def _label(labels: Array, port: Port, loss: Loss) -> Array:
    """Labels as a user may have them without doubt: 0 and 1 as whole numbers, one value a row without its axis."""
    if loss.kind == "bce_with_logits" and labels.dtype.kind in "biu":
        labels = labels.astype(port.dtype)
    if loss.kind != "cross_entropy" and port.shape[1:] == (1,) and labels.ndim == 1:
        labels = labels[:, np.newaxis]
    return labels


def _typed(name: str, array: Array, port: Port, sizes: Mapping[str, int], first_row: int) -> Array:
    target = np.dtype(port.dtype)
    same_kind = array.dtype.kind == target.kind or (array.dtype.kind in "iu" and target.kind in "iu")
    if not same_kind:
        scale = " Pictures are scaled by you, as the model was trained." if array.dtype == np.uint8 else ""
        raise DataError(f"'{name}' has the element type {array.dtype}, the model takes {target}: convert it.{scale}")
    if not has_shape(port, array.shape, sizes):
        raise DataError(f"'{name}' has the shape {list(array.shape)}, {spelled(port, sizes)}.")
    with np.errstate(over="ignore"):  # what becomes infinite is found below
        typed = np.ascontiguousarray(array, target)
    if target.kind == "f" and not np.isfinite(typed).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(typed))[0])
        at = [first_row + where[0], *where[1:]]
        raise DataError(f"'{name}' has the value {array[where]} at {at} (row {at[0]}): clean the data.")
    if target.kind in "iu" and array.dtype != target and not np.array_equal(typed, array):
        raise DataError(f"'{name}' has values that do not fit {target}.")
    return typed


def _weights(weights: Array, rows: int) -> Array:
    if weights.shape != (rows,) or weights.dtype.kind not in "fiu":
        raise DataError(
            f"'{SAMPLE_WEIGHTS}' has the shape {list(weights.shape)} and type {weights.dtype}; "
            f"it must be one number for each of {rows} rows."
        )
    weights = weights.astype(np.float32)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(f"'{SAMPLE_WEIGHTS}' must be finite and not negative; the smallest is {weights.min()}.")
    return weights
