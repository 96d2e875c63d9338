"""Gradients of U-Nets and of networks over one and three dimensions equal torch's, by the criterion of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convolution_models import SUBJECTS
from parity import assert_parity
from test_gradient_parity import torch_gradients

import onnxft


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_gradient_equals_torch(name: str, provider: str, artifact_of: Callable[..., Path]) -> None:
    subject = SUBJECTS[name]
    (batch,) = subject.batches(1, seed=1)
    reference, float32 = (torch_gradients(subject, batch, dtype) for dtype in (torch.float64, torch.float32))
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        found = session.gradients(batch)
        assert set(found) == {p.name for p in session.manifest.parameters}
    assert_parity(f"{name} on {provider}", found, reference, float32)
