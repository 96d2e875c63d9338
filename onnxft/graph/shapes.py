"""Shapes of graph values as plain tuples: an int is static, a string symbolic, None unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError

Dim = int | str | None


def dims(value: ir.Value) -> tuple[Dim, ...]:
    """Shape of `value`; GradientError if even its rank is unknown."""
    if value.shape is None:
        producer = value.producer()
        maker = f"output of {producer.op_type} '{producer.name}'" if producer is not None else "a graph input"
        raise GradientError(
            f"the rank of '{value.name}' ({maker}) is unknown, so its gradient cannot be shaped. "
            "Export the model with static shapes except for the batch (and sequence) dimension."
        )
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def static_dims(value: ir.Value, start: int = 0, stop: int | None = None) -> tuple[int, ...]:
    """Dimensions [start:stop] of `value`, all of which must be static; GradientError otherwise."""
    part = dims(value)[start:stop]
    if not all(isinstance(d, int) for d in part):
        raise GradientError(
            f"'{value.name}' has shape {list(dims(value))}; its dimensions {start}:{'' if stop is None else stop} "
            "must be static here. Export the model with fixed spatial sizes."
        )
    return tuple(d for d in part if isinstance(d, int))


def symbolic_count(shape: Sequence[Dim]) -> int:
    """How many dimensions are not static."""
    return sum(not isinstance(d, int) for d in shape)


def product(shape: Sequence[Dim]) -> int | None:
    """Number of values, None if a dimension is not static."""
    return None if symbolic_count(shape) else math.prod(d for d in shape if isinstance(d, int))


def set_dims(value: ir.Value, shape: Sequence[Dim]) -> None:
    """Record a shape that inference cannot see; known static dimensions are never weakened."""
    value.shape = ir.Shape(list(shape))


def normalize_axis(axis: int, rank: int) -> int:
    """Non-negative form of an axis."""
    return axis + rank if axis < 0 else axis
