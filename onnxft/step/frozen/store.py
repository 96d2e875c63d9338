"""A model whose frozen weights are stored in fewer bytes, and widened in the graph where they are read.

Trained parameters, biases, normalisation and small tensors stay float32, as do products: what is computed is the same
as with the widened weights in the place of the frozen ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxft.errors import ConfigError, near
from onnxft.frozen_weights import FrozenPrecision, FrozenWeights, RelativeError
from onnxft.graph.forward import Forward, Tensor
from onnxft.step.frozen.narrow import Narrow, narrow
from onnxft.step.frozen.readers import channel_axis, readers
from onnxft.step.frozen.widen import SCALE, STORED, put_float32, widen_where_read
from onnxft.step.select import Selection
from onnxft.step.step_graph import element_type

PRECISIONS: tuple[FrozenPrecision, ...] = ("float32", "float16", "bfloat16", "int8")
MIN_VALUES = 256
"""Weights with fewer values stay float32: there is little to save."""
MIN_CHANNEL = 8
"""Likewise those whose channels have fewer, beside which a scale weighs."""


@dataclass(frozen=True)
class Stored:
    """A model with its frozen weights in fewer bytes, and what that changes."""

    forward: Forward
    weights: FrozenWeights
    """What is stored so; how its outputs differ is for the caller to find."""


def check_precision(precision: str) -> FrozenPrecision:
    """The precision of that name; ConfigError where there is none."""
    for known in PRECISIONS:
        if precision == known:
            return known
    raise ConfigError(f"frozen weights cannot be stored in '{precision}'.{near(precision, PRECISIONS)}")


def store_frozen(forward: Forward, selection: Selection, precision: FrozenPrecision) -> Stored:
    """Store the frozen weights of a model in `precision`; `forward` is not changed.

    In the inference model that users get, a weight that an adapter will be merged into is float32: the widened one.

    Raises:
        ConfigError: no frozen weight could be stored so.
        ModelError: a weight has values that are not finite, or that float16 cannot hold.
    """
    moved = {*selection.trainable, *selection.buffers}
    frozen = [t for t in forward.tensors if t.name not in moved]
    found: dict[str, Narrow] = {}
    errors = _Errors()
    for tensor in frozen:
        weight, axis = _weight(forward, tensor), _channel_axis(forward, tensor)
        if weight is not None and axis is not None and weight.size >= MIN_CHANNEL * weight.shape[axis]:
            found[tensor.name] = narrow(tensor.name, weight, axis, precision)
            errors.add(weight, found[tensor.name].widened())
    if not found:
        raise ConfigError(
            f"'{forward.name}' has no frozen weight to store in {precision}: those of linear layers, convolutions and "
            f"embeddings with at least {MIN_VALUES} values, {MIN_CHANNEL} in a channel, in float32 are, where they are "
            "not trained. Leave --frozen-precision out."
        )
    merged = {merge.target for merge in forward.added.values()}
    train, infer, original = forward.train.clone(), forward.infer.clone(), forward.original
    for model in (train, infer):
        widen_where_read(model, found)
    if original is not None:
        original = original.clone()
        widen_where_read(original, {name: stored for name, stored in found.items() if name not in merged})
        put_float32(original, {name: found[name].widened() for name in found if name in merged})
    added = [t for name, stored in found.items() for t in _tensors(name, stored)]
    kept = [t for t in frozen if t.name not in found]
    made = replace(
        forward, train=train, infer=infer, original=original, tensors=(*forward.tensors, *added),
        stored=tuple(f"{name}{STORED}" for name in found),
    )  # fmt: skip
    saved = FrozenWeights(precision, len(found), _bytes([*kept, *added]), _bytes(frozen), errors.relative())
    return Stored(made, saved)


def _weight(forward: Forward, tensor: Tensor) -> NDArray[Any] | None:
    """The value of a tensor that is large enough to store in fewer bytes; None of another."""
    if tensor.dtype != "float32" or len(tensor.shape) < 2 or tensor.size < MIN_VALUES:
        return None
    for model in (forward.train, forward.infer):
        value = model.graph.initializers.get(tensor.name)
        if value is not None and value.const_value is not None:
            return np.asarray(value.const_value.numpy())
    return None


def _channel_axis(forward: Forward, tensor: Tensor) -> int | None:
    """The axis of the channels; None where something else than products and look-ups reads the tensor."""
    found = []
    for model in (forward.train, forward.infer):
        if tensor.name in model.graph.initializers:
            read = readers(model.graph.initializers[tensor.name], model.graph)
            if read is None:
                return None
            found += read
    return channel_axis(found) if found else None


def _tensors(name: str, stored: Narrow) -> list[Tensor]:
    """What is stored in the place of a weight."""
    found = [Tensor(f"{name}{STORED}", stored.values.shape, stored.values.dtype.name, "buffer")]
    if stored.scale is not None:
        found.append(Tensor(f"{name}{SCALE}", stored.scale.shape, stored.scale.dtype.name, "buffer"))
    return found


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the tensors that the graphs read."""
    return sum(math.ceil(t.size * element_type(t.dtype).itemsize) for t in tensors if t.used)


class _Errors:
    """The relative error over several tensors."""

    def __init__(self) -> None:
        self._max = self._differences = self._values = 0.0

    def add(self, expected: NDArray[Any], found: NDArray[Any]) -> None:
        difference, size = np.abs(found - expected), np.abs(expected)
        if largest := float(size.max(initial=0)):
            self._max = max(self._max, float(difference.max(initial=0)) / largest)
        self._differences += float(difference.sum(dtype=np.float64))
        self._values += float(size.sum(dtype=np.float64))

    def relative(self) -> RelativeError:
        return RelativeError(self._max, self._differences / self._values if self._values else 0.0)
