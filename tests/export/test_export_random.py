"""Dropout of every kind is kept for training and gone for inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import onnxft
from onnxft.api import plan
from onnxft.errors import ModelError
from onnxft.exporters.pytorch import export_module
from onnxft.manifest import BATCH
from onnxft.manifest_file import read_manifest
from onnxft.runtime.random_inputs import draw
from onnxft.step.build import build_step

Behaviour = Callable[[torch.Tensor, bool], torch.Tensor]
ROWS = 5


class Noisy(nn.Module):
    """A dense layer whose result passes through `behaviour(h, training)`."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.behaviour = behaviour

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behaviour(self.fc(x), self.training)


def drop_path(h: torch.Tensor, training: bool) -> torch.Tensor:
    """Stochastic depth: whole rows, by a Bernoulli mask that is written in place."""
    return h * h.new_empty((h.shape[0], 1)).bernoulli_(0.7) / 0.7 if training else h


def attention(h: torch.Tensor, training: bool) -> torch.Tensor:
    q = h.reshape(-1, 2, 2, 2)
    return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if training else 0.0).reshape(-1, 8)


def bernoulli(h: torch.Tensor, training: bool) -> torch.Tensor:
    return h * torch.bernoulli(torch.sigmoid(h).detach()) if training else h


KINDS = {
    "dropout": (lambda h, t: functional.dropout(h, 0.3, t), (BATCH, 8)),
    "dropout1d": (lambda h, t: functional.dropout1d(h.reshape(-1, 4, 2), 0.3, t).flatten(1), (BATCH, 4, 1)),
    "dropout2d": (lambda h, t: functional.dropout2d(h.reshape(-1, 4, 2, 1), 0.3, t).flatten(1), (BATCH, 4, 1, 1)),
    "alpha_dropout": (lambda h, t: functional.alpha_dropout(h, 0.3, t), (BATCH, 8)),
    "feature_alpha": (
        lambda h, t: functional.feature_alpha_dropout(h.reshape(-1, 4, 2, 1), 0.3, t).flatten(1),
        (BATCH, 4, 1, 1),
    ),
    "rrelu": (lambda h, t: functional.rrelu(h, training=t), (BATCH, 8)),
    "drop path": (drop_path, (BATCH, 1)),
    "rand": (lambda h, t: h * (torch.rand(h.shape[0], 1) < 0.7) if t else h, (BATCH, 1)),
    "rand_like": (lambda h, t: h * (torch.rand_like(h) < 0.5) if t else h, (BATCH, 8)),
    "noise": (lambda h, t: h + torch.randn_like(h) if t else h, (BATCH, 8)),
    "gumbel": (lambda h, t: functional.gumbel_softmax(h) if t else h.softmax(-1), (BATCH, 8)),
    "bernoulli": (bernoulli, (BATCH, 8)),
    "attention": (attention, (BATCH, 2, 2, 2)),
    "tokens": (lambda h, t: functional.dropout(h.reshape(-1, 2), 0.3, t).reshape(-1, 8), ("4*batch", 2)),
}
RANDOM = ("Dropout", "Bernoulli", "RandomUniformLike", "RandomNormalLike", "RandomUniform", "RandomNormal")


@pytest.mark.parametrize("kind", KINDS)
def test_training_draws_and_inference_does_not(kind: str, tmp_path: Path) -> None:
    behaviour, shape = KINDS[kind]
    torch.manual_seed(1)
    module = Noisy(behaviour)
    x = torch.randn(ROWS, 6)
    artifact = onnxft.export(module, x, tmp_path / "a")
    manifest = read_manifest(artifact)
    (port,) = manifest.graphs["gradients"].named("random")
    assert port.shape == shape
    assert not manifest.graphs["eval"].named("random")
    infer = export_module(module, x).infer
    assert not {node.op_type for node in infer.graph} & set(RANDOM)
    batch = {"x": x.numpy(), "labels": np.arange(ROWS)}
    with onnxft.TrainSession(artifact, threads=1) as session:
        assert len({session.accumulate(batch).loss for _ in range(4)}) > 1  # masks of whole rows may repeat
        with torch.no_grad():
            expected = module.eval()(x).numpy()
        np.testing.assert_allclose(session.predict({"x": x.numpy()})["output"], expected, rtol=1e-4, atol=1e-6)


def seen_attention(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q = h.reshape(-1, 2, 2, 2)
    return ((q @ q.transpose(2, 3) / 2**0.5).softmax(-1) * mask @ q).reshape(-1, 8)


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("bernoulli", lambda h, u: h * (u < torch.sigmoid(h).detach())),
        ("attention", seen_attention),
        ("drop path", lambda h, u: h * (u < 0.7) / 0.7),
        ("tokens", lambda h, mask: h * mask.reshape(-1, 8)),
    ],
)
def test_gradients_equal_torch_with_the_same_numbers(
    kind: str, seen: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    module, x, labels = Noisy(KINDS[kind][0]), torch.randn(ROWS, 6), np.arange(ROWS)
    with onnxft.TrainSession(onnxft.export(module, x, tmp_path / "a"), threads=1, seed=3) as session:
        found = session.gradients({"x": x.numpy(), "labels": labels})
        ports = session.manifest.graphs["gradients"].named("random")
    (numbers,) = draw(ports, {BATCH: ROWS}, seed=3, step=0, micro_step=0).values()
    output = seen(module.fc(x), torch.tensor(numbers))
    functional.cross_entropy(output, torch.tensor(labels)).backward()
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (lambda h, t: h.gather(1, torch.multinomial(h.softmax(1).detach(), 2, True)) if t else h[:, :2], "Multinomial"),
        (lambda h, t: h[:, torch.randperm(8)] if t else h, "randperm"),
    ],
)
def test_what_the_host_cannot_draw_is_refused_by_name(behaviour: Behaviour, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        made = plan(Noisy(behaviour), torch.randn(ROWS, 6))
        build_step(made.forward, made.selection, made.loss, made.optimizer)
