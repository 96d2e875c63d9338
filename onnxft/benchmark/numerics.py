"""Whether two sides compute the same: loss and gradients of one batch at the initial parameters.

Of an inference the outputs take the place of the gradients, and their names that of the parameters'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Gradients = Mapping[str, NDArray[Any]]

RANDOM = "not compared: the model draws random numbers"


@dataclass(frozen=True)
class Numerics:
    """One side against the reference side; either the numbers or the reason why there are none."""

    reference: str | None
    loss_difference: float | None = None
    """|loss - ref| / |ref|"""
    gradient_difference: float | None = None
    """The largest `gradient_difference` of all parameters."""
    worst_parameter: str | None = None
    by_parameter: dict[str, float] = field(default_factory=dict)
    """{parameter: its `gradient_difference`}"""
    reason: str | None = None


def gradient_difference(g: NDArray[Any], ref: NDArray[Any], largest: float) -> float:
    """‖g - ref‖ / max(‖ref‖, 1e-4 · largest)

    `largest` is the largest ‖ref‖ of all parameters: a gradient that is zero but for rounding (a bias
    before a normalisation) is measured against the scale of the others. All in float64.
    """
    g, ref = g.astype(np.float64), ref.astype(np.float64)
    return _norm(g - ref) / max(_norm(ref), 1e-4 * largest)


def compare(
    loss: float,
    gradients: Gradients,
    ref_loss: float,
    ref_gradients: Gradients,
    reference: str,
    kind: Literal["gradient", "output"] = "gradient",
) -> Numerics:
    """Compare two sides; where that is impossible the `reason` says why."""
    reason = _incomparable(gradients, ref_gradients, reference, kind)
    if reason is None and ref_loss == 0:
        reason = f"the loss of {reference} is zero"
    if reason is not None:
        return Numerics(reference, reason=f"not compared: {reason}")
    largest = max(_norm(ref.astype(np.float64)) for ref in ref_gradients.values())
    differences = {
        name: gradient_difference(gradients[name], ref, largest) for name, ref in sorted(ref_gradients.items())
    }
    worst = max(differences, key=lambda name: differences[name])
    return Numerics(reference, abs(loss - ref_loss) / abs(ref_loss), differences[worst], worst, differences)


def _norm(x: NDArray[Any]) -> float:
    return float(np.linalg.norm(x))


def _incomparable(gradients: Gradients, ref_gradients: Gradients, reference: str, kind: str) -> str | None:
    for name in sorted({*gradients, *ref_gradients}):
        if name not in gradients:
            return f"it has no {kind} of '{name}'"
        if name not in ref_gradients:
            return f"{reference} has no {kind} of '{name}'"
        g, ref = gradients[name], ref_gradients[name]
        if g.shape != ref.shape:
            return f"the {kind} of '{name}' has shape {g.shape}, that of {reference} {ref.shape}"
        if not np.isfinite(g).all() or not np.isfinite(ref).all():
            return f"a value of the {kind} of '{name}' is not finite"
    if not any(ref.any() for ref in ref_gradients.values()):
        return f"all {kind}s of {reference} are zero"
    return None
