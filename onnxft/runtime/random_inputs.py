"""The numbers of Dropout and the like, drawn on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxft.arrays import Array
from onnxft.errors import ConfigError
from onnxft.manifest import BATCH, Distribution, Port
from onnxft.runtime.processes import Share
from onnxft.runtime.sizes import fixed_shape


def draw(
    ports: tuple[Port, ...],
    sizes: Mapping[str, int],
    *,
    seed: int,
    step: int,
    micro_step: int,
    share: Share = Share(),  # noqa: B008 - frozen
) -> dict[str, Array]:
    """The random inputs of one micro-step; those of a share are its part of what the large batch has.

    Philox keyed by (seed, place) with (micro-step, step) in the upper counter words, so that each
    draw depends on nothing else: repeatable on every provider and after a resume.
    """
    whole = {**sizes, BATCH: sizes[BATCH] * share.processes}
    drawn = {
        port: _draw_one(port, whole, np.random.Philox(key=[seed, place], counter=[0, 0, micro_step, step]))
        for place, port in enumerate(p for p in ports if p.role == "random")
    }
    return {port.name: _part(value, port, sizes, share) for port, value in drawn.items()}


def _part(value: Array, port: Port, sizes: Mapping[str, int], share: Share) -> Array:
    """What a share's rows have of a draw for the large batch: along each dimension that grows with the batch.

    Of rows that hold several of the model's, `batch*sequence`, the batch is the slower one.
    """
    places = []
    for dimension, n, large in zip(port.shape, fixed_shape(port, sizes), value.shape, strict=True):
        if large not in (n, n * share.processes):
            raise ConfigError(
                f"the random input '{port.name}' has {dimension} rows, which cannot be divided among "
                f"{share.processes} processes. Train in one process."
            )
        places.append(slice(None) if large == n else slice(share.rank * n, (share.rank + 1) * n))
    return value[tuple(places)]


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
