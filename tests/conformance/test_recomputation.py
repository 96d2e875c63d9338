"""Recomputed activations on every provider: nothing more falls back, and the gradients are those without."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
from tolerances import side

import onnxft
from onnxft.runtime.execution import Execution
from onnxft.runtime.random_batch import random_batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["transformer", "adaptable"])
def test_recomputation_leaves_gradients_and_placement(name: str, execution: Execution, tmp_path: Path) -> None:
    gradients, fallen = [], []
    for recompute in (False, True):
        artifact = onnxft.export(*getattr(models, name)(), tmp_path / str(recompute), recompute=recompute)
        with onnxft.TrainSession(artifact, execution.provider, precision=execution.precision, threads=1) as session:
            gradients.append(session.gradients(random_batch(session.manifest, 4, 5)))
            fallback = session.placement.fallback.get("gradients", {})
            fallen.append({provider: len(nodes) for provider, nodes in fallback.items()})
    assert fallen[0] == fallen[1]
    largest = max(np.abs(g).max() for g in gradients[0].values())
    difference = max(np.abs(g - gradients[1][k]).max() for k, g in gradients[0].items()) / largest
    print(f"{name} on {side(execution)}: {difference:.1e}")
    # Only on cpu are the runtime's fusions of what nothing else reads switched off.
    assert difference <= {"cpu": 0.0}.get(execution.provider, 1e-5 if execution.precision == "float32" else 2e-2)
