"""Whether an output of the exported graph is that of its source."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxft.errors import ModelError


def compare(
    name: str, own: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], where: str, source: str, report: str
) -> None:
    """ModelError unless `own` is `expected` up to rounding.

    The tolerance is 1e-3 (float32) or 1e-9 (float64) of the largest value: rounding passes, a wrong graph does not.

    Args:
        name: of the output.
        own: what the exported graph gives.
        expected: what its source gives.
        where: with which batch, for the message.
        source: what gave `expected`, for the message.
        report: what the user should do about a difference.
    """
    if own.shape != expected.shape:
        raise ModelError(
            f"output '{name}' has the shape {list(own.shape)} {where}, {source} gives {list(expected.shape)}."
        )
    tolerance = 1e-9 if expected.dtype == np.float64 else 1e-3
    # A masked logit is -∞ on both sides.
    differs = (own != expected) & ~(np.isnan(own) & np.isnan(expected)) if own.dtype.kind == "f" else own != expected
    if own.dtype.kind not in "fiu":
        error = float(differs.any())
    else:
        finite = expected[np.isfinite(expected)].astype(np.float64)
        scale = max(float(np.abs(finite).max(initial=0)), 1e-6)
        error = float(np.abs(own[differs].astype(np.float64) - expected[differs]).max(initial=0)) / scale
    if not error <= tolerance:
        raise ModelError(
            f"output '{name}' differs from {source} by {error:.1e} of its largest value {where} (allowed "
            f"{tolerance:.0e}): the export is wrong. {report}"
        )
