"""The models that providers are tried on, and what torch computes for them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import torch

ROWS = 8


@dataclass(frozen=True)
class Subject:
    """A model, how it is trained, and data for it."""

    name: str
    factory: Callable[[], tuple[Any, tuple[Any, ...]]]
    input_name: str
    shape: tuple[int, ...]
    loss: str
    outputs: int
    scale: float = 1.0
    frozen: tuple[str, ...] = ()
    """Patterns of parameters that are not trained."""
    trained_norms: tuple[str, ...] = ()
    """BatchNorm layers that train their running statistics."""
    words: int = 0
    """The input is of indices below it; 0: of floats."""

    def batches(self, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
        """Random batches of `ROWS` rows."""
        rng = np.random.default_rng(seed)
        return [self._batch(rng) for _ in range(count)]

    def _batch(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x: np.ndarray = (self.scale * rng.standard_normal((ROWS, *self.shape))).astype(np.float32)
        if self.words:
            x = rng.integers(0, self.words, (ROWS, *self.shape))
        if self.loss == "mse":
            return {self.input_name: x, "labels": rng.standard_normal((ROWS, self.outputs)).astype(np.float32)}
        return {self.input_name: x, "labels": rng.integers(0, self.outputs, ROWS)}

    def module(self) -> torch.nn.Module:
        """The torch model as it is trained here: normalisation frozen but for `trained_norms`, no dropout."""
        module, _ = self.factory()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.frozen))
        module.eval()
        for name in self.trained_norms:
            module.get_submodule(name).train()
        return module

    def mean_loss(
        self, module: torch.nn.Module, batch: dict[str, np.ndarray], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """The loss in torch, in the type of the model."""
        x = torch.tensor(batch[self.input_name])
        output = module(x.to(dtype) if x.is_floating_point() else x)
        labels = torch.tensor(batch["labels"])
        if self.loss == "mse":
            return torch.nn.functional.mse_loss(output, labels.to(dtype))
        return torch.nn.functional.cross_entropy(output, labels)


SUBJECTS = {
    s.name: s
    for s in (
        Subject("mlp", models.mlp, "x", (7,), "cross_entropy", 5),
        Subject("mlp_regression", models.mlp_regression, "x", (7,), "mse", 3),
        Subject("convnet", models.convnet, "image", (1, 24, 24), "cross_entropy", 10, scale=2.0),
        Subject(
            "shared_conv", models.shared_conv, "image", (6, 7, 6), "cross_entropy", 5, scale=2.0, frozen=("norms.*",)
        ),
        *(
            Subject(factory.__name__, factory, "x", (time, 5), "cross_entropy", 4)
            for factory, time in (
                (models.lstm, 7),
                (models.lstm_states, 7),
                (models.lstm_long, 50),
                (models.gru, 7),
                (models.gru_states, 7),
                (models.rnn, 7),
            )
        ),
        Subject("embedding", models.embedding, "tokens", (30,), "cross_entropy", 5, words=7),
        Subject("transformer", models.transformer, "tokens", (9,), "cross_entropy", 5, words=23),
        Subject("normed", models.normed, "image", (2, 9, 8), "cross_entropy", 4, trained_norms=("bn1", "bn3")),
        Subject("efficientnet", models.efficientnet, "inputs", (3, 64, 64), "cross_entropy", 2),
        # With constant normalisation, runtimes fold it into the convolutions around it.
        Subject("efficientnet_cut", models.efficientnet, "inputs", (3, 64, 64), "cross_entropy", 2, frozen=("*_bn*",)),
    )
}


def torch_losses(
    subject: Subject,
    optimizer: Callable[..., torch.optim.Optimizer],
    batches: Sequence[dict[str, np.ndarray]],
    module: torch.nn.Module | None = None,
) -> list[float]:
    """Losses of torch's own steps over `batches`, on `module` where it is given."""
    module = module or subject.module()
    stepper = optimizer(module.parameters())
    losses = []
    for batch in batches:
        stepper.zero_grad()
        loss = subject.mean_loss(module, batch)
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return losses
