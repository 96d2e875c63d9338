"""The sizes that the open dimensions of a session have, and the shapes that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from onnxft.arrays import Arrays
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import BATCH, Manifest, Port, dimension_size

Sizes = Mapping[str, int | Sequence[int]]
"""{symbolic dimension: its size, or every size that it may have}"""


def check_dimensions(manifest: Manifest, dimensions: Sizes) -> None:
    """ConfigError for a dimension that the artifact does not have open, or a size that is none."""
    for name, given in dimensions.items():
        if name not in manifest.dimensions:
            known = ", ".join(f"'{n}'" for n in manifest.dimensions) or "none besides the batch (batch_size)"
            raise ConfigError(f"the artifact has no symbolic dimension '{name}'; it has {known}.")
        sizes = _each(given)
        if not sizes:
            raise ConfigError(f"the dimension '{name}' has no size; give one, or several.")
        for size in sizes:
            if size < 1:
                raise ConfigError(f"the dimension '{name}' is {size}; it must be at least 1.")


def combined(manifest: Manifest, batch_size: int, dimensions: Sizes) -> tuple[Mapping[str, int], ...]:
    """Each {symbolic dimension: its size} that a batch may have, the batch included; the largest first."""
    every = {BATCH: (batch_size,), **{d: _each(n) for d, n in {**manifest.dimensions, **dimensions}.items()}}
    chosen = product(*(sorted(set(sizes), reverse=True) for sizes in every.values()))
    return tuple(dict(zip(every, sizes, strict=True)) for sizes in chosen)


def _each(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)


def sizes_of(batch: Arrays, ports: tuple[Port, ...], sizes: tuple[Mapping[str, int], ...]) -> Mapping[str, int]:
    """Which of `sizes` a batch has by the shapes of its arrays; a dimension that they do not show is the largest.

    Raises:
        DataError: it has none of them, or not all arrays the same.
    """
    if len(sizes) == 1:
        return sizes[0]
    shapes = {p: np.shape(batch[p.name]) for p in ports if p.name in batch}
    for candidate in sizes:
        if all(has_shape(p, shape, candidate) for p, shape in shapes.items()):
            return candidate
    for port, shape in shapes.items():
        if not any(has_shape(port, shape, candidate) for candidate in sizes):
            raise DataError(f"'{port.name}' has the shape {list(shape)}, {spelled(port, *sizes)}.")
    found = {p.name: list(shape) for p, shape in shapes.items() if any(isinstance(d, str) for d in p.shape[1:])}
    raise DataError(f"arrays of one batch must have the same sizes of the open dimensions, here {found}.")


def has_shape(port: Port, shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    """Whether an array of this shape is one for the port in a session of these sizes; the batch may be any."""
    return len(shape) == len(port.shape) and all(
        d == BATCH or _size(d, sizes) == n for d, n in zip(port.shape, shape, strict=True)
    )


def check_statistics(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """ConfigError where a trained BatchNorm would see a single value of a channel, which has no variance."""
    for buffer in manifest.buffers:
        over = [dimension_size(d, sizes) or 2 for d in buffer.over]  # 2: not known, so not refused
        if math.prod(over) < 2:
            raise ConfigError(
                f"BatchNorm '{buffer.layer}' trains on the statistics of the batch and would see one value of each "
                f"channel, which has no variance: use a batch_size of at least 2, or leave the layer frozen."
            )


def fixed_shape(port: Port, sizes: Mapping[str, int]) -> list[int]:
    """The shape of a port in a session that fixes the symbolic dimensions to `sizes`."""
    return [_size(d, sizes) for d in port.shape]


def _size(dimension: int | str, sizes: Mapping[str, int]) -> int:
    size = dimension_size(dimension, sizes)
    assert size is not None, "a manifest has no input with a dimension of unknown size"
    return size


def spelled(port: Port, *sizes: Mapping[str, int]) -> str:
    """What a port takes, in the sizes that a session allows."""
    allowed = {d: sorted({_size(d, s) for s in sizes}) for d in port.shape if isinstance(d, str) and d != BATCH}
    here = "".join(f"; this session fixes '{d}' to {' or '.join(map(str, n))} (dimensions)" for d, n in allowed.items())
    return f"the model takes {list(port.shape)}{here}"
