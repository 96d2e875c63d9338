"""From a user's batch to a complete one: checked, padded to the fixed size, random inputs drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from onnxft.errors import ConfigError, DataError, near
from onnxft.manifest import BATCH, SAMPLE_WEIGHTS, Distribution, Loss, Manifest, Port, dimension_size
from onnxft.runtime.engine import Array, Arrays


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
        loss: says the range of class labels.
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
    checked = {name: _typed(name, np.asarray(batch[name]), port, sizes, first_row) for name, port in wanted.items()}
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
    """DataError for a class label that is no class and not ignored (the runtimes would read other memory)."""
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
    return f"the '{manifest.generator}' generator cannot weight rows"


def check_statistics(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """ConfigError where a trained BatchNorm would see a single value of a channel, which has no variance.

    `sizes` are those of the symbolic dimensions where they differ from the artifact's.
    """
    known = {**manifest.dimensions, **sizes}
    for buffer in manifest.buffers:
        over = [dimension_size(d, known) or 2 for d in buffer.over]  # 2: not known, so not refused
        if math.prod(over) < 2:
            raise ConfigError(
                f"BatchNorm '{buffer.layer}' trains on the statistics of the batch and would see one value of each "
                f"channel, which has no variance: use a batch_size of at least 2, or leave the layer frozen."
            )


def parts(batch: Arrays, size: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """(first row, {name: at most `size` rows}) one after the other; at least one part."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    rows = max((len(a) for a in arrays.values() if a.ndim), default=0)
    for start in range(0, max(rows, 1), size):
        yield start, {name: array[start : start + size] if array.ndim else array for name, array in arrays.items()}


def fixed_shape(port: Port, sizes: Mapping[str, int]) -> list[int]:
    """The shape of a port in a session that fixes the symbolic dimensions to `sizes`."""
    return [_size(d, sizes) for d in port.shape]


def _size(dimension: int | str, sizes: Mapping[str, int]) -> int:
    size = dimension_size(dimension, sizes)
    assert size is not None, "a manifest has no input with a dimension of unknown size"
    return size


def without_labels(ports: tuple[Port, ...], rows: int, sizes: Mapping[str, int], *, weights: bool) -> dict[str, Array]:
    """Zero labels, with weight 0 where `weights`: for a batch of which only the outputs are asked for."""
    zeros: dict[str, Array] = {p.name: np.zeros(fixed_shape(p, {**sizes, BATCH: rows}), p.dtype) for p in ports}
    return {**zeros, SAMPLE_WEIGHTS: np.zeros(rows, np.float32)} if weights else zeros


def draw(
    ports: tuple[Port, ...], sizes: Mapping[str, int], *, seed: int, step: int, micro_step: int
) -> dict[str, Array]:
    """The random inputs of one micro-step.

    Philox keyed by (seed, place) with (micro-step, step) in the upper counter words, so that each
    draw depends on nothing else: repeatable on every provider and after a resume.
    """
    return {
        port.name: _draw_one(port, sizes, np.random.Philox(key=[seed, place], counter=[0, 0, micro_step, step]))
        for place, port in enumerate(p for p in ports if p.role == "random")
    }


def _draw_one(port: Port, sizes: Mapping[str, int], bits: np.random.Philox) -> Array:
    rng, what = np.random.Generator(bits), port.distribution or Distribution("uniform")
    shape = fixed_shape(port, sizes)
    value: Array
    match what.kind:
        case "dropout":
            kept = rng.random(shape, np.float32) >= what.ratio
            value = kept / (1.0 - what.ratio)
        case "uniform":
            value = what.low + (what.high - what.low) * rng.random(shape, np.float32)
        case "normal":
            value = what.low + what.high * rng.standard_normal(shape, np.float32)
    return np.asarray(value, port.dtype)


def _typed(name: str, array: Array, port: Port, sizes: Mapping[str, int], first_row: int) -> Array:
    target = np.dtype(port.dtype)
    same_kind = array.dtype.kind == target.kind or (array.dtype.kind in "iu" and target.kind in "iu")
    if not same_kind:
        scale = " Pictures are scaled by you, as the model was trained." if array.dtype == np.uint8 else ""
        raise DataError(f"'{name}' has the element type {array.dtype}, the model takes {target}: convert it.{scale}")
    if array.ndim != len(port.shape) or any(
        d != BATCH and _size(d, sizes) != n for d, n in zip(port.shape, array.shape, strict=True)
    ):
        raise DataError(f"'{name}' has the shape {list(array.shape)}, {_spell(port, sizes)}.")
    with np.errstate(over="ignore"):  # what becomes infinite is found below
        typed = np.ascontiguousarray(array, target)
    if target.kind == "f" and not np.isfinite(typed).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(typed))[0])
        at = [first_row + where[0], *where[1:]]
        raise DataError(f"'{name}' has the value {array[where]} at {at} (row {at[0]}): clean the data.")
    if target.kind in "iu" and array.dtype != target and not np.array_equal(typed, array):
        raise DataError(f"'{name}' has values that do not fit {target}.")
    return typed


def _spell(port: Port, sizes: Mapping[str, int]) -> str:
    fixed = {d: _size(d, sizes) for d in port.shape if isinstance(d, str) and d != BATCH}
    here = "".join(f"; this session fixes '{d}' to {n} (dimensions)" for d, n in fixed.items())
    return f"the model takes {list(port.shape)}{here}"


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
