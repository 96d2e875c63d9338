"""Layer 2: along a random direction of each input the gradient equals a central difference, in float64."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from checking import build, feeds, reference

RELATIVE = 1e-6


@pytest.mark.parametrize("case", cases.SMOOTH, ids=lambda case: case.name)
def test_gradient_equals_central_difference(case):
    built = build(case, np.float64)
    evaluator = reference(built.proto)
    fed = feeds(case, np.float64)
    names = [v.name for v in built.model.graph.outputs]
    found = dict(zip(names, evaluator.run(names, fed), strict=True))

    def loss(i, x):
        return float(evaluator.run(["loss"], fed | {f"x{i}": x})[0])

    for i in built.dxs:
        x = fed[f"x{i}"]
        direction = np.random.default_rng(i).normal(size=x.shape)

        def difference(eps, i=i, x=x, direction=direction):
            return (loss(i, x + eps * direction) - loss(i, x - eps * direction)) / (2 * eps)

        analytic = float(np.sum(found[f"dx{i}"] * direction))
        numeric, coarser = difference(1e-6), difference(1e-5)
        scale = max(abs(numeric), np.linalg.norm(found[f"dx{i}"]), 1e-2)
        assert abs(numeric - coarser) <= RELATIVE * scale, (
            f"the reference evaluator computes {case.op} in less than float64: the difference is {coarser} "
            f"at 1e-5 and {numeric} at 1e-6; give checking.reference an override"
        )
        assert abs(analytic - numeric) <= RELATIVE * scale, (
            f"{case.op} {dict(case.attrs)}: input {i} {x.shape}: analytic {analytic}, numeric {numeric}"
        )
