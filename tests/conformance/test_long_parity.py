"""The slow series: gradients at many points of a training run of real size, and not just at its start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conformance_subjects import SUBJECTS
from parity import assert_parity
from test_gradient_parity import batch_away_from_kinks, torch_gradients

import onnxft

pytestmark = pytest.mark.slow
EVERY, POINTS = 25, 4


@pytest.mark.parametrize("name", SUBJECTS)
def test_gradients_equal_torch_along_a_run(name: str, provider: str, artifact_of: Callable[..., Path]) -> None:
    """At 0, 25, 50 and 75 steps of AdamW, each time with the parameters that our own steps have reached."""
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 is not installed here")
    subject = SUBJECTS[name]
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        for point in range(POINTS):
            for batch in subject.batches(EVERY if point else 0, seed=100 + point):
                session.step(batch, lr=1e-4)
            module = subject.module()
            state = {n: torch.tensor(v) for n, v in session.parameters.items()}
            module.load_state_dict(state, strict=False)
            batch = batch_away_from_kinks(subject, module)
            reference, float32 = (
                torch_gradients(subject, batch, dtype, module) for dtype in (torch.float64, torch.float32)
            )
            where = f"{name} on {provider}, step {point * EVERY}"
            assert_parity(where, session.gradients(batch), reference, float32)
