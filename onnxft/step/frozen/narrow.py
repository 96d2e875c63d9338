"""Weights in fewer bytes: int8 with a scale for each channel, or half precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxft.arrays import Array
from onnxft.errors import ModelError
from onnxft.frozen_weights import FrozenPrecision

_LARGEST = 127
"""Of the integers: symmetric around 0, so that -128 is not used."""
_HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Narrow:
    """A weight in fewer bytes."""

    values: Array
    """int8, float16 or bfloat16, of the weight's shape."""
    scale: Array | None
    """float32 (channels,): what an int8 of each channel counts; None in half precision."""
    axis: int
    """Of the channels."""

    def widened(self) -> Array:
        """The weight that the graph computes from it, float32."""
        wide = self.values.astype(np.float32)
        if self.scale is None:
            return wide
        others = [i for i in range(wide.ndim) if i != self.axis]
        return np.asarray(wide * np.expand_dims(self.scale, others), np.float32)


def narrow(name: str, weight: Array, axis: int, precision: FrozenPrecision) -> Narrow:
    """A float32 weight in fewer bytes.

    int8: q = round(w / s), s = max |w| / 127 over a channel, 1 where the channel is 0; halves go to the even number.

    Args:
        name: of the weight, for messages.
        weight: float32, of any shape with at least one dimension.
        axis: of the channels that have a scale each.
        precision: `int8`, `float16` or `bfloat16`.

    Raises:
        ModelError: the weight has a value that is not finite, or that float16 cannot hold.
    """
    if not np.isfinite(weight).all():
        raise ModelError(
            f"the frozen weight '{name}' has values that are not finite, so that it cannot be stored in {precision}. "
            "Mend the model, or leave --frozen-precision out."
        )
    if precision == "int8":
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(others, initial=0)
        # A channel of numbers so small that their scale is 0 in float32 is 0 too.
        scale = (largest / np.float32(_LARGEST)).astype(np.float32)
        scale[scale == 0] = 1
        quotient = weight / np.expand_dims(scale, others)
        return Narrow(np.clip(np.rint(quotient), -_LARGEST, _LARGEST).astype(np.int8), scale, axis)
    with np.errstate(over="ignore"):
        values = weight.astype(_HALVES[precision].numpy())
    if not np.isfinite(values.astype(np.float32)).all():
        raise ModelError(
            f"the frozen weight '{name}' has the value {np.abs(weight).max():g}, which {precision} cannot hold. Take "
            "--frozen-precision bfloat16 or int8."
        )
    return Narrow(values, None, axis)
