"""Moving averages of the parameters equal those of torch's AveragedModel, update by update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance_subjects import SUBJECTS
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import onnxft

UPDATES = 8
OPTIMIZERS: dict[str, tuple[dict[str, float], float, Callable[..., torch.optim.Optimizer]]] = {
    "adamw": ({}, 3e-3, lambda p: torch.optim.AdamW(p, lr=3e-3)),
    "adam": ({}, 3e-3, lambda p: torch.optim.Adam(p, lr=3e-3)),
    "sgd": ({"momentum": 0.9}, 0.02, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
}
TOLERANCE = 1e-5


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "optimizer", "decay"),
    [
        ("mlp", "adamw", 0.0),
        ("mlp", "adamw", 0.3),
        ("mlp", "adamw", 0.9),
        ("mlp", "adam", 0.5),
        ("mlp", "sgd", 0.99),
        ("convnet", "sgd", 0.9),
        ("normed", "adamw", 0.999),
    ],
)
def test_averages_equal_torch(
    name: str, optimizer: str, decay: float, provider: str, artifact_of: Callable[..., Path]
) -> None:
    subject, (options, lr, make) = SUBJECTS[name], OPTIMIZERS[optimizer]
    module = subject.module()
    stepper = make(module.parameters())
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    with onnxft.TrainSession(artifact_of(subject, optimizer, **options), provider, threads=2) as session:
        followed: dict[str, np.ndarray] = {}
        for update, batch in enumerate(subject.batches(UPDATES)):
            stepper.zero_grad()
            subject.mean_loss(module, batch).backward()
            stepper.step()
            averaged.update_parameters(module)
            if update % 3 == 2 and session.supports_weights:  # the parameters change buffers in another way
                session.accumulate(batch)
                session.update(lr=lr)
            else:
                session.step(batch, lr=lr)
            session.average(decay)
            found, parameters = session.averages, session.parameters
            for parameter, p in averaged.module.named_parameters():
                if parameter in found:
                    assert error(found[parameter], p.detach().numpy()) <= TOLERANCE, (update, parameter)
            for parameter, value in parameters.items():
                exact = value.astype(np.float64)
                followed[parameter] = decay * followed.get(parameter, exact) + (1 - decay) * exact
                assert error(found[parameter], followed[parameter]) <= 1e-6, (update, parameter)


def test_averages_stand_in_the_place_of_the_parameters(provider: str, artifact_of: Callable[..., Path]) -> None:
    subject = SUBJECTS["mlp"]
    batches = subject.batches(4)
    with onnxft.TrainSession(artifact_of(subject), provider, threads=2) as session:
        for batch in batches[:3]:
            session.step(batch, lr=0.05)
            session.average(0.8)
        averages, parameters = session.averages, session.parameters
        before = session.evaluate(batches[3]).loss
        with session.averaged():
            within = session.evaluate(batches[3])
        assert session.evaluate(batches[3]).loss == before
        session.set_parameters(averages)
        assert session.evaluate(batches[3]).loss == within.loss != before
        session.set_parameters(parameters)
        assert session.evaluate(batches[3]).loss == before
