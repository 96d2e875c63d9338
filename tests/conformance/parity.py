"""The criterion by which gradients equal torch's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Gradients = Mapping[str, np.ndarray]


def errors(found: Gradients, reference: Gradients) -> dict[str, float]:
    """‖g - g_ref‖ / max(‖g_ref‖, 1e-4 · the largest ‖g_ref‖), for each parameter."""
    largest = max(np.linalg.norm(g) for g in reference.values())
    return {
        name: float(np.linalg.norm(g - reference[name]) / max(np.linalg.norm(reference[name]), 1e-4 * largest))
        for name, g in found.items()
    }


def assert_parity(what: str, found: Gradients, reference: Gradients, float32: Gradients, least: float = 1e-4) -> None:
    """Every error is at most max(least, 3e), where e is the largest of torch in float32; `reference` is in float64."""
    own = max(errors(float32, reference).values())
    relative = errors(found, reference)
    worst = max(relative, key=relative.__getitem__)
    print(f"{what}: {len(relative)} parameters, worst {relative[worst]:.1e} ({worst}); torch float32 {own:.1e}")
    assert relative[worst] <= max(least, 3 * own), worst
