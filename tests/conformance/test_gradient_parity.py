"""Gradients of whole models equal torch's in float64, as closely as torch's own float32 does.

‖g - g_ref‖ ≤ max(1e-4, 3e) · max(‖g_ref‖, 1e-4 · the largest ‖g_ref‖) for every parameter, where e is
torch float32's largest such relative error on that model in the same run.

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
    for seed in range(1, 20):
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


def errors(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    largest = max(np.linalg.norm(g) for g in reference.values())
    return {
        name: float(np.linalg.norm(g - reference[name]) / max(np.linalg.norm(reference[name]), 1e-4 * largest))
        for name, g in found.items()
    }


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_gradient_equals_torch(name: str, provider: str, artifact_of: Callable[..., Path]) -> None:
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 is not installed here")
    subject = SUBJECTS[name]
    batch = batch_away_from_kinks(subject)
    reference = torch_gradients(subject, batch, torch.float64)
    own = max(errors(torch_gradients(subject, batch, torch.float32), reference).values())
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        found = errors(session.gradients(batch), reference)
        assert set(found) == {p.name for p in session.manifest.parameters}
    worst = max(found, key=found.__getitem__)
    print(f"{name} on {provider}: {len(found)} parameters, worst {found[worst]:.1e} ({worst}); torch float32 {own:.1e}")
    assert found[worst] <= max(1e-4, 3 * own), worst
