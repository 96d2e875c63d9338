"""Trained BatchNorm beside torch's: statistics over 20 steps, and 200 steps with the masks of Dropout shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from conformance_subjects import ROWS, SUBJECTS, torch_losses
from test_twenty_steps import OPTIMIZERS, TOLERANCE

import onnxft
from onnxft.runtime.random_inputs import draw

NORMED = SUBJECTS["normed"]


class Masked(torch.nn.Module):
    """Dropout with a mask that is given: factors (batch, features)."""

    mask: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_running_statistics_of_twenty_steps_equal_torch(
    optimizer: str, provider: str, artifact_of: Callable[..., Path]
) -> None:
    options, lr, make = OPTIMIZERS[optimizer]
    batches, module = NORMED.batches(20), NORMED.module()
    before = {name: buffer.clone().numpy() for name, buffer in module.named_buffers()}
    torch_losses(NORMED, make, batches, module)
    expected = dict(module.named_buffers())
    with onnxft.TrainSession(artifact_of(NORMED, optimizer, **options), provider, threads=2) as session:
        for batch in batches:
            session.step(batch, lr=lr)
        found = session.buffers
    assert list(found) == ["bn1.running_mean", "bn1.running_var", "bn3.running_mean", "bn3.running_var"]
    for name, value in found.items():
        largest = np.abs(expected[name].numpy()).max()
        assert np.abs(value - expected[name].numpy()).max() <= TOLERANCE * largest, name
        assert np.abs(value - before[name]).max() > 0.1 * largest, name
    np.testing.assert_array_equal(expected["bn2.running_mean"].numpy(), before["bn2.running_mean"])


LONG_RUNS: dict[str, tuple[dict[str, float], float, Callable[..., torch.optim.Optimizer]]] = {
    "adamw": ({}, 1e-3, lambda p: torch.optim.AdamW(p, lr=1e-3)),
    "sgd": ({"momentum": 0.9}, 5e-3, lambda p: torch.optim.SGD(p, lr=5e-3, momentum=0.9)),
}


@pytest.mark.parametrize("optimizer", LONG_RUNS)
def test_two_hundred_steps_with_dropout_follow_torch(optimizer: str, provider: str, tmp_path: Path) -> None:
    """Within 1e-5 over ten steps; rounding then grows with the steps, as between two machines that run torch.

    Without kinks: one activation that rounding puts on the other side of a Relu6's 0 or 6 moves the losses behind
    it by 1e-3, between torch in float32 and in float64 too.
    """
    options, lr, make = LONG_RUNS[optimizer]
    module, examples = models.normed()
    module.act = torch.nn.Tanh()
    artifact = onnxft.export(
        module, examples, tmp_path / "normed", optimizer=optimizer, optimizer_options=options, batch_size=ROWS,
        train_batchnorm=["bn[13]"],
    )  # fmt: skip
    module.train()
    module.bn2.eval()
    module.dropout = masked = Masked()
    stepper = make(module.parameters())
    found, expected = [], []
    with onnxft.TrainSession(artifact, provider, threads=2, seed=3) as session:
        inputs = session.manifest.graph("train").inputs
        for step, batch in enumerate(NORMED.batches(200, seed=4)):
            (mask,) = draw(inputs, session.dimensions, seed=3, step=step, micro_step=0).values()
            masked.mask = torch.tensor(mask)
            stepper.zero_grad()
            loss = NORMED.mean_loss(module, batch)
            loss.backward()
            stepper.step()
            expected.append(loss.item())
            found.append(session.step(batch, lr=lr).loss)
        statistics = session.buffers
    difference = np.abs(np.array(found) - expected) / np.abs(expected)
    print(f"{optimizer} on {provider}: {difference[:10].max():.1e} over 10 steps, {difference.max():.1e} over 200")
    assert difference[:10].max() <= 1e-5
    assert difference.max() <= 1e-3
    assert len(statistics) == 4
    for name, value in statistics.items():
        np.testing.assert_allclose(value, module.get_buffer(name).numpy(), rtol=1e-3, atol=1e-3, err_msg=name)
