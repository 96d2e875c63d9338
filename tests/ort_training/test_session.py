"""A session on an artifact of the ort-training generator against one on the native generator's, of the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ort_training_models import BATCH_SIZE, CASES, CLASSES, CROSS_ENTROPY, choose, make_forward
from torch import nn

import onnxft
from onnxft.errors import ArtifactError, ConfigError, DataError
from onnxft.generators import native
from onnxft.generators.ort_training.generate import generate
from onnxft.manifest import Loss
from onnxft.runtime.session import TrainSession
from onnxft.step.optimizers import describe_optimizer

Pair = tuple[TrainSession, TrainSession]
Opened = Callable[..., Pair]
NAMES = ["mlp_sgd", "mlp_decay", "convnet_affine", "layer_norm", "dropout"]
LOSSES = {
    "plain": CROSS_ENTROPY,
    "smoothed": replace(CROSS_ENTROPY, label_smoothing=0.2),
    "of weighted classes": replace(CROSS_ENTROPY, class_weights=(0.5, 2.0, 1.0)),
    "with ignored labels": replace(CROSS_ENTROPY, ignore_index=1),
    "of numbers": Loss("huber", "logits", delta=0.3),
}


@pytest.fixture
def opened(ort_python: str, tmp_path: Path) -> Iterator[Opened]:
    """opened(case, loss=None, ...): sessions of the generators native and ort-training."""
    sessions: list[TrainSession] = []

    def make(name: str, loss: Loss | None = None, **options: Any) -> Pair:
        case, own = CASES[name], CASES[name].optimizer
        optimizer = describe_optimizer(own.kind, dict(own.options), own.weight_decay)
        for kind, write in (("native", native.generate), ("ort-training", generate)):
            directory = tmp_path / f"{name}-{kind}-{len(sessions)}"
            write(
                make_forward(case), choose(*case.trainable), loss or case.loss, optimizer, directory,
                batch_size=BATCH_SIZE,
            )  # fmt: skip
            sessions.append(TrainSession(directory, threads=1, seed=3, **options))
        return sessions[-2], sessions[-1]

    yield make
    for session in sessions:
        session.close()


def make_batch(rows: int, seed: int, session: TrainSession, *, weighted: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    graph = session.manifest.graphs.get("eval") or session.manifest.graph("ort_eval")
    (x,) = graph.named("input")
    batch = {"x": rng.standard_normal((rows, *map(int, x.shape[1:])), np.float32)}
    numbers = session.manifest.loss.kind != "cross_entropy"
    labels = rng.standard_normal((rows, CLASSES), np.float32) if numbers else rng.integers(0, CLASSES, rows)
    batch["labels"] = labels
    if weighted:
        batch["sample_weights"] = rng.uniform(0.1, 3, rows).astype(np.float32)
    return batch


def assert_same_parameters(pair: Pair, rtol: float = 1e-4) -> None:
    first, second = (session.parameters for session in pair)
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=rtol, atol=2e-6, err_msg=name)


# ----- steps -----


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_native_generator(name: str, opened: Opened) -> None:
    # Of full and short batches, with and without weights; with masks, which depend on seed and step alone.
    pair = opened(name)
    for step, (rows, weighted) in enumerate([(6, False), (6, True), (4, False), (1, True), (5, True)]):
        first, second = (s.step(make_batch(rows, step, s, weighted=weighted), lr=CASES[name].lr) for s in pair)
        assert second.loss == pytest.approx(first.loss, rel=1e-4)
        assert second.weight_sum == pytest.approx(first.weight_sum, rel=1e-6)
        assert second.metrics == pytest.approx(first.metrics, rel=1e-5)
    assert_same_parameters(pair)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_accumulates_and_clips_as_the_native_generator_does(loss: str, opened: Opened) -> None:
    pair = opened("mlp_decay", LOSSES[loss])
    for step, clipping in enumerate([{}, {"max_norm": 0.05}, {"max_norm": 0.1, "max_value": 0.02}]):
        for session in pair:
            for micro_step, rows in enumerate([6, 4, 2]):
                session.accumulate(make_batch(rows, 10 * step + micro_step, session, weighted=micro_step > 0))
            session.update(lr=0.05, **clipping)
            session.step(make_batch(5, 100 + step, session), lr=0.05, **clipping)
    assert_same_parameters(pair)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_and_scores_are_those_of_the_native_generator(loss: str, opened: Opened) -> None:
    pair = opened("convnet_affine", LOSSES[loss])
    first, second = (s.gradients(make_batch(5, 1, s, weighted=True)) for s in pair)
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    scores, other = (s.evaluate(make_batch(11, 2, s, weighted=True)) for s in pair)
    assert (other.loss, other.weight_sum) == pytest.approx((scores.loss, scores.weight_sum), rel=1e-5)
    assert other.metrics == pytest.approx(scores.metrics, rel=1e-5)
    np.testing.assert_allclose(other.outputs["logits"], scores.outputs["logits"], rtol=1e-4, atol=1e-6)
    outputs = pair[1].predict({"x": make_batch(11, 2, pair[1])["x"]})
    np.testing.assert_array_equal(outputs["logits"], other.outputs["logits"])


def test_masks_are_repeated_and_resumed(opened: Opened, tmp_path: Path) -> None:
    _, first = opened("dropout")
    _, second = opened("dropout")
    batches = [make_batch(6, step, first) for step in range(4)]
    losses = [first.step(batch, lr=0.1).loss for batch in batches[:2]]
    first.save_checkpoint(tmp_path / "checkpoint")
    losses += [first.step(batch, lr=0.1).loss for batch in batches[2:]]
    assert [second.step(batch, lr=0.1).loss for batch in batches] == losses
    second.load_checkpoint(tmp_path / "checkpoint")
    assert [second.step(batch, lr=0.1).loss for batch in batches[2:]] == losses[2:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: {n: a[:4] for n, a in batch.items()}, "exactly 6 rows .*this one has 4 rows"),
        (lambda batch: {**batch, "sample_weights": np.arange(6)}, "with weights of their own"),
    ],
)
def test_a_standalone_artifact_takes_whole_batches_of_weight_1(
    change: Callable[[Any], Any], words: str, ort_artifact: Callable[..., Path]
) -> None:
    with TrainSession(ort_artifact("mlp_sgd", standalone=True), threads=1) as session:
        batch = make_batch(6, 0, session)
        for call in (session.accumulate, session.gradients, lambda b: session.step(b, lr=0.1)):
            with pytest.raises(DataError, match=f"a standalone loss is a mean over the labels.*{words}"):
                call(change(batch))
        assert math.isfinite(session.step(batch, lr=0.1).loss)
        assert not session.supports_weights


# ----- parameters as one vector -----


def test_vectors_of_both_generators_are_the_same(opened: Opened) -> None:
    pair = opened("convnet_adamw")
    for session in pair:
        session.step(make_batch(6, 0, session), lr=0.1)
    native_vector, own_vector = (session.parameter_vector() for session in pair)
    assert own_vector.shape == (pair[0].manifest.num_trainable,)
    assert own_vector.dtype == np.float32
    np.testing.assert_allclose(own_vector, native_vector, rtol=1e-4, atol=1e-6)
    mean = (native_vector + own_vector[::-1]) / 2
    for session in pair:
        session.set_parameter_vector(mean)
        np.testing.assert_array_equal(session.parameter_vector(), mean)
    assert_same_parameters(pair, rtol=0)
    np.testing.assert_array_equal(np.concatenate([v.ravel() for v in pair[1].parameters.values()]), mean)


def test_a_vector_with_the_frozen_parameters_too(opened: Opened) -> None:
    first, session = opened("convnet_adamw")
    trained, every = session.parameter_vector(), session.parameter_vector(trainable_only=False)
    assert every.size > trained.size
    batch = make_batch(6, 0, session)
    before = session.evaluate(batch).loss
    session.set_parameter_vector(every * 0.5, trainable_only=False)
    np.testing.assert_array_equal(session.parameter_vector(), trained * 0.5)
    assert session.evaluate(batch).loss != before
    session.set_parameter_vector(every, trainable_only=False)
    assert session.evaluate(batch).loss == before
    for call in (first.parameter_vector, lambda **options: first.set_parameter_vector(every, **options)):
        with pytest.raises(ConfigError, match="frozen weights of a native artifact are constants of its graphs"):
            call(trainable_only=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v[:-1], r"has the shape \[65\] and type float32; here it is float32 \[66\]"),
        (lambda v: v.reshape(2, -1), r"has the shape \[2, 33\]"),
        (lambda v: v.astype(np.float64), "and type float64; here it is float32"),
        (lambda v: np.where(np.arange(v.size) == 7, np.nan, v), "must have finite values"),
    ],
)
def test_a_vector_that_does_not_fit_changes_nothing(change: Callable[[Any], Any], words: str, opened: Opened) -> None:
    for session in opened("mlp_sgd"):
        vector = session.parameter_vector()
        with pytest.raises(ArtifactError, match=words):
            session.set_parameter_vector(change(vector))
        np.testing.assert_array_equal(session.parameter_vector(), vector)


# ----- open dimensions -----


class Words(nn.Module):
    """The mean of the words of a text, through a layer: ids (batch, sequence) -> (batch, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(11, 7), nn.Linear(7, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.words(ids)).mean(1))


@pytest.mark.parametrize("standalone", [False, True])
def test_batches_of_several_lengths_are_exact_in_one_session(standalone: bool, ort_python: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rng = Words(), np.random.default_rng(1)
    sessions = []
    for generator, options in (("native", {}), ("ort-training", {"standalone": standalone})):
        directory = onnxft.export(
            module, (torch.zeros(4, 5, dtype=torch.int64),), tmp_path / generator, input_names=["ids"],
            dynamic_shapes={"ids": {1: "sequence"}}, generator=generator, batch_size=4, **options,
        )  # fmt: skip
        sessions.append(TrainSession(directory, threads=1, dimensions={"sequence": (5, 8, 3)}))
    for lengths in ((5, 8), (3,), (3, 8, 5)):
        batches = [{"ids": rng.integers(0, 11, (4, n)), "labels": rng.integers(0, CLASSES, 4)} for n in lengths]
        for session in sessions:
            for batch in batches:
                session.accumulate(batch)
            session.update(lr=0.05)
    scores, other = (session.evaluate(batches[0]) for session in sessions)
    assert other.loss == pytest.approx(scores.loss, rel=1e-4)
    assert_same_parameters((sessions[0], sessions[1]))
    for session in sessions:
        session.close()
