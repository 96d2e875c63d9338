"""Gradients of U-Nets and of networks over one and three dimensions equal torch's, by the criterion of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convolution_models import SUBJECTS
from test_gradient_parity import errors, torch_gradients

import onnxft


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_gradient_equals_torch(name: str, provider: str, artifact_of: Callable[..., Path]) -> None:
    subject = SUBJECTS[name]
    (batch,) = subject.batches(1, seed=1)
    reference = torch_gradients(subject, batch, torch.float64)
    own = max(errors(torch_gradients(subject, batch, torch.float32), reference).values())
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        found = errors(session.gradients(batch), reference)
        assert set(found) == {p.name for p in session.manifest.parameters}
    worst = max(found, key=found.__getitem__)
    print(f"{name} on {provider}: {len(found)} parameters, worst {found[worst]:.1e} ({worst}); torch float32 {own:.1e}")
    assert found[worst] <= max(1e-4, 3 * own), worst
