"""Cases of DequantizeLinear: per tensor and per axis, with and without a zero point."""

from __future__ import annotations

import numpy as np
from checking import Case, Range


def dequantize(dtype, shape, scale, zero=None, axis=None, note="", batch=()):
    rng = np.random.default_rng(0)
    low, high = (-100, 100) if dtype != np.uint8 else (0, 200)
    x = rng.integers(low, high, shape).astype(dtype)
    zero_point = () if zero is None else (np.asarray(zero, dtype),)
    column = (
        [-1, *[1] * (len(shape) - (1 if axis is None else axis % len(shape)) - 1)] if scale not in ((), (1,)) else []
    )

    def in_torch(x, s, z=None):
        s = s.reshape(column)
        return (x.to(s.dtype) - (0 if z is None else z.to(s.dtype).reshape(column))) * s

    attrs = {} if axis is None else {"axis": axis}
    inputs = (x, Range(scale), *zero_point)
    return Case("DequantizeLinear", inputs, in_torch, attrs, note, runtime=(0,), float32=True, batch=batch)


CASES = [
    dequantize(np.int8, (2, 3, 4), (), -7, note="int8", batch=(0,)),
    dequantize(np.uint8, (2, 3, 4), (), 128, note="uint8", batch=(0,)),
    dequantize(np.int32, (2, 3), (), note="int32, no zero point"),
    dequantize(np.int8, (), (), 3, note="a scalar"),
    dequantize(np.int8, (2, 3, 4), (3,), [1, -2, 3], note="default axis", batch=(0,)),
    dequantize(np.uint8, (2, 3, 4), (2,), [7, 128], axis=0),
    dequantize(np.int8, (2, 3, 4), (4,), [1, -2, 3, 0], axis=-1, batch=(0,)),
    dequantize(np.int8, (2, 3, 4), (3,), axis=1, note="no zero point", batch=(0,)),
    dequantize(np.int8, (4,), (4,), [1, -2, 3, 0], axis=0, note="one axis"),
]
