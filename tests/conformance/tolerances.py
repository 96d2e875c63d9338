"""How closely a provider must follow torch, which is in float32 always: one table for all of the suite."""

from __future__ import annotations

from dataclasses import dataclass

from onnxft.runtime.execution import Execution, Precision


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences from torch."""

    losses: float
    """Of the loss of each of twenty steps."""
    gradients: float
    """Of the norm of each gradient, as `parity.errors` counts it."""
    values: float
    """Of parameters and state after three steps, to the largest element of each."""


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-5, 1e-4, 1e-5),
    # A product of two bfloat16 numbers (8 bits) is off by up to 2^-8 = 4e-3, one of float16 (11 bits) by 5e-4;
    # gradients pass through several products, and a step moves the point at which the next one is taken.
    "bfloat16": Tolerance(3e-2, 5e-2, 5e-2),
    "float16": Tolerance(5e-3, 1e-2, 1e-2),
}


def tolerance(execution: Execution) -> Tolerance:
    """That of a provider in a precision."""
    return TOLERANCES[execution.precision]


def side(execution: Execution) -> str:
    """`provider`, or `provider:precision` below float32."""
    return execution.provider + (f":{execution.precision}" if execution.precision != "float32" else "")
