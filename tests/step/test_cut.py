"""A divided model computes what the whole one does, with the same gradients, and says why where it stays whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onnxft
from onnxft import api
from onnxft.generators import native
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.runtime.session import TrainSession
from onnxft.step.cut import Cut, cut

ROWS = 6


class Masked(nn.Module):
    """Two blocks over tokens whose padding is masked by an input; the mean over what is not masked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0)
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shown = mask[:, :, None].float()
        x = self.dropout(torch.relu(self.first(self.table(tokens)))) * shown
        x = torch.tanh(self.second(x)) * shown
        return self.head(x.sum(1) / shown.sum(1))


def masked(dropout: float = 0.0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    tokens = torch.randint(0, 11, (ROWS, 5))
    return Masked(dropout), {"tokens": tokens, "mask": (tokens > 2).long() | torch.tensor([1, 0, 0, 0, 0])}


def convnet() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(4)
    features = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2, stride=2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(24, 3)), {"input": torch.randn(ROWS, 2, 6, 9)}


def dropout_first() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Dropout on the input, a frozen layer, and one that is trained."""
    parts = [nn.Dropout(0.5), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(parts[0], nn.Sequential(*parts[1:]), nn.Linear(3, 3)), {"input": torch.randn(ROWS, 4)}


def two_artifacts(
    model: tuple[nn.Module, dict[str, torch.Tensor]], trainable: list[str], folder: Path
) -> tuple[Manifest, list[TrainSession]]:
    """The same plan, divided and whole."""
    planned = api.plan(*model, trainable=trainable)
    manifests = [
        native.generate(
            planned.forward, planned.selection, planned.loss, planned.optimizer, folder / name, batch_size=ROWS,
            divide=divide,
        )
        for name, divide in (("divided", True), ("whole", False))
    ]  # fmt: skip
    assert "trunk" not in manifests[1].graphs
    return manifests[0], [TrainSession(folder / name, threads=1) for name in ("divided", "whole")]


def batch_of(inputs: dict[str, torch.Tensor], rows: int = ROWS) -> dict[str, np.ndarray]:
    labels = np.random.default_rng(0).integers(0, 3, ROWS)
    return {name: value.numpy()[:rows] for name, value in {**inputs, "labels": torch.from_numpy(labels)}.items()}


CASES = {
    "head": (masked, ["head.*"], [(ROWS, 8)]),
    "second": (masked, ["head.*", "second.*"], [(ROWS, 5, 8), (ROWS, 5, 1), (ROWS, 1)]),
    "convnet_head": (convnet, ["5.*"], [(ROWS, 24)]),
    "convnet_last": (convnet, ["3.*", "5.*"], [(ROWS, 5, 4, 7)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [ROWS, ROWS - 2])
def test_divided_and_whole_are_equal(case: str, rows: int, tmp_path: Path) -> None:
    make, trainable, shapes = CASES[case]
    model = make()
    _, (divided, whole) = two_artifacts(model, trainable, tmp_path)
    batch = batch_of(model[1], rows)
    inputs = {name: array for name, array in batch.items() if name != "labels"}
    features = divided.features(inputs)
    assert sorted(f.shape for f in features.values()) == sorted((rows, *shape[1:]) for shape in shapes)
    kept = {**features, "labels": batch["labels"]}
    for name, expected in whole.gradients(batch).items():
        np.testing.assert_array_equal(divided.gradients(batch)[name], expected)
        np.testing.assert_array_equal(divided.gradients(kept)[name], expected)
    for given in (batch, kept, batch):
        assert divided.step(given, lr=0.1).loss == whole.step(batch, lr=0.1).loss
        assert divided.evaluate(given).loss == whole.evaluate(batch).loss
        np.testing.assert_array_equal(divided.predict(inputs)["output"], whole.predict(inputs)["output"])
    for name, expected in whole.parameters.items():
        np.testing.assert_array_equal(divided.parameters[name], expected)


def test_the_trunk_has_the_inputs_and_no_other_graph_has(tmp_path: Path) -> None:
    manifest, _ = two_artifacts(masked(), ["head.*", "second.*"], tmp_path)
    assert [p.name for p in manifest.inputs] == ["tokens", "mask"]
    for role in ("train", "gradients", "eval"):
        assert not manifest.graphs[role].named("input"), role
        assert set(manifest.graphs[role].named("feature")) == set(manifest.features)


@pytest.mark.parametrize(
    ("model", "trainable", "words"),
    [
        (masked(), ["*"], ""),
        (masked(0.5), ["first.*"], ""),
        (convnet(), ["0.*", "5.*"], ""),
        (dropout_first(), ["2.*"], "the frozen part draws random numbers first ('"),
    ],
)
def test_why_a_model_stays_whole(
    model: tuple[nn.Module, dict[str, torch.Tensor]], trainable: list[str], words: str, tmp_path: Path
) -> None:
    artifact = onnxft.export(*model, tmp_path / "a", trainable=trainable)
    manifest = read_manifest(artifact)
    assert "trunk" not in manifest.graphs
    assert manifest.whole.startswith(words)
    assert bool(manifest.whole) == bool(words)


def test_what_lies_behind_dropout_is_random_and_what_lies_before_is_kept(tmp_path: Path) -> None:
    model = masked(0.5)
    manifest, (divided, whole) = two_artifacts(model, ["head.*"], tmp_path)
    assert {p.shape for p in manifest.features} == {("batch", 5, 8), ("batch", 5, 1), ("batch", 1)}
    assert manifest.graphs["train"].named("random")
    batch = batch_of(model[1])
    for _ in range(3):
        assert divided.step(batch, lr=0.1).loss == whole.step(batch, lr=0.1).loss
    assert divided.evaluate(batch).loss == whole.evaluate(batch).loss


def test_a_trained_batch_norm_is_behind_the_cut() -> None:
    planned = api.plan(*convnet(), trainable=["5.*"], train_batchnorm=["1"])
    divided = cut(planned.forward, planned.selection)
    assert isinstance(divided, Cut)
    assert [p.shape for p in divided.trunk.outputs] == [("batch", 5, 4, 7)]
