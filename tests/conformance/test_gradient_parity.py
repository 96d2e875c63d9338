"""Gradients of whole models equal torch's in float64, as closely as torch's own float32 does (see `parity`).

A Relu6 has no derivative at 0 and 6: an activation so close to one of them that rounding decides its side
changes gradients by far more than rounding does. The batch is therefore the first random one whose
activations keep a distance from both, as torch computes them in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance_subjects import SUBJECTS, Subject
from parity import assert_parity

import onnxft


def torch_gradients(
    subject: Subject, batch: dict[str, np.ndarray], dtype: torch.dtype, module: torch.nn.Module | None = None
) -> dict[str, np.ndarray]:
    module = copy.deepcopy(module or subject.module()).to(dtype)
    subject.mean_loss(module, batch, dtype).backward()
    return {n: p.grad.numpy().astype(np.float64) for n, p in module.named_parameters() if p.grad is not None}


def batch_away_from_kinks(
    subject: Subject, given: torch.nn.Module | None = None, distance: float = 2e-6
) -> dict[str, np.ndarray]:
    for seed in range(1, 200):  # of four million activations, one is nearly always close
        (batch,) = subject.batches(1, seed=seed)
        module, nearest = copy.deepcopy(given or subject.module()).double(), [1.0]

        def keep_nearest(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            (x,) = inputs
            nearest.append(min(x.abs().min().item(), (x - 6).abs().min().item()))  # noqa: B023  (used in this turn)

        for layer in module.modules():
            if isinstance(layer, torch.nn.ReLU6):
                layer.register_forward_hook(keep_nearest)
        with torch.no_grad():
            subject.mean_loss(module, batch, torch.float64)
        if min(nearest) > distance:
            return batch
    raise AssertionError("every batch has an activation at a kink")


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_gradient_equals_torch(name: str, provider: str, artifact_of: Callable[..., Path]) -> None:
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 is not installed here")
    subject = SUBJECTS[name]
    batch = batch_away_from_kinks(subject)
    reference, float32 = (torch_gradients(subject, batch, dtype) for dtype in (torch.float64, torch.float32))
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        found = session.gradients(batch)
        assert set(found) == {p.name for p in session.manifest.parameters}
    assert_parity(f"{name} on {provider}", found, reference, float32)
