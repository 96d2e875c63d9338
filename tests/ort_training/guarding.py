"""What the tests of guards share: a guard with its check, and training compared with torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxft
from onnxft.runtime.session import TrainSession

ROWS, STEPS = 6, 4


@dataclass(frozen=True)
class Guard:
    defect: str
    """As shared/traps.md counts them, or in words."""
    check: Callable[[Path], None]
    without: Callable[[pytest.MonkeyPatch, Path], None]
    """Takes the guard out."""
    shows: str
    """What the check says then."""

    def shows_itself(self, folder: Path) -> None:
        """The check fails, and for this reason; `Failed` is what pytest.raises raises."""
        with pytest.raises((Exception, pytest.fail.Exception), match=self.shows):
            self.check(folder)


def replaced(module: ModuleType, name: str, by: object) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, folder: patch.setattr(module, name, by)


def nothing(*_: Any, **__: Any) -> None:
    """In the place of a guard that checks or changes in place."""


def export(module: nn.Module, x: torch.Tensor, directory: Path, **options: Any) -> Path:
    return onnxft.export(module, x, directory, generator="ort-training", **{"optimizer": "sgd", **options})


def make_batches(x: torch.Tensor, classes: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    shape = (ROWS, *x.shape[1:])
    return [
        {"input": rng.standard_normal(shape).astype(np.float32), "labels": rng.integers(0, classes, ROWS)}
        for _ in range(STEPS)
    ]


def torch_parameters(
    module: nn.Module, data: list[dict[str, np.ndarray]], optimizer: torch.optim.Optimizer
) -> dict[str, np.ndarray]:
    for batch in data:
        optimizer.zero_grad()
        outputs = module(torch.from_numpy(batch["input"]))
        nn.functional.cross_entropy(outputs, torch.from_numpy(batch["labels"])).backward()
        optimizer.step()
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def assert_trains_as_torch(
    artifact: Path, module: nn.Module, data: list[dict[str, np.ndarray]], optimizer: torch.optim.Optimizer, lr: float
) -> None:
    with TrainSession(artifact, threads=1) as session:
        before = session.parameters
        for batch in data:
            session.step(batch, lr=lr)
        found = session.parameters
    expected = torch_parameters(module, data, optimizer)
    for name, value in found.items():
        moved, wanted = value - before[name], expected[name] - before[name]
        assert np.abs(moved - wanted).max() <= 2e-3 * np.abs(wanted).max() + 1e-7, f"'{name}' is not as torch has it"
