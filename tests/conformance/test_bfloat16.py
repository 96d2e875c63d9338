"""Training in bfloat16 where a provider computes in it: real, close to float32, and exact where it must be.

The bound on gradients is 3e-2, or twice what torch's autocast differs from float32 where that is more: an activation
at the kink of a Relu may change sides.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance_subjects import ROWS, SUBJECTS, Subject

import onnxft
from onnxft.errors import ProviderError
from onnxft.runtime.execution import Execution
from onnxft.runtime.precision import require_precision
from onnxft.runtime.providers import PROVIDERS, is_builtin, plugin_devices

BFLOAT16 = ("openvino",)
CLOSE = 3e-2


class Tagger(torch.nn.Module):
    """A transformer that classifies each of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.head = torch.nn.Linear(16, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(tokens))).transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class Tags(Subject):
    """Tokens, each with a label; some do not count."""

    def _batch(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        labels = rng.integers(0, self.outputs, (ROWS, *self.shape))
        labels[rng.random(labels.shape) < 0.3] = -100
        return {self.input_name: rng.integers(0, 50, (ROWS, *self.shape)), "labels": labels}

    def mean_loss(
        self, module: torch.nn.Module, batch: dict[str, np.ndarray], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            module(torch.tensor(batch[self.input_name])), torch.tensor(batch["labels"])
        )


@cache
def tagger() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return Tagger(), (torch.zeros(ROWS, 6, dtype=torch.int64),)


TAGS = Tags("tagger", tagger, "tokens", (6,), "cross_entropy", 9)
TRIED = {s.name: s for s in (SUBJECTS["mlp"], SUBJECTS["mlp_regression"], SUBJECTS["convnet"], TAGS)}
WEIGHTS = np.array([1.01, 0.503, 0.333, 1.7, 0.2, 1, 1, 257], np.float32)
"""Of rows: most have no bfloat16 of their own."""


@pytest.fixture(params=BFLOAT16)
def lowered(request: pytest.FixtureRequest) -> str:
    """A provider that computes in bfloat16 here."""
    entry = PROVIDERS[request.param]
    demanded = request.param in os.environ.get("ONNXFT_TEST_PROVIDERS", "").split(",")
    if not (demanded or is_builtin(entry) or plugin_devices(entry)):
        pytest.skip(f"provider '{request.param}' does not run here")
    try:
        require_precision(entry, Execution(request.param, "bfloat16"))
    except ProviderError as err:
        pytest.skip(str(err))
    return str(request.param)


@pytest.fixture(scope="module")
def artifact(artifact_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, optimizer) -> artifact of one of `TRIED`."""

    @cache
    def make(name: str, optimizer: str = "sgd") -> Path:
        if name != TAGS.name:
            return artifact_of(TRIED[name], optimizer)
        folder = tmp_path_factory.mktemp("tagger") / optimizer
        return onnxft.export(
            *tagger(), folder, optimizer=optimizer, batch_size=ROWS, loss_options={"ignore_index": -100},
            input_names=["tokens"],
        )  # fmt: skip

    return make


def differences(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """‖g - g_ref‖ / ‖g_ref‖ of each parameter whose gradient is not noise (the bias of a key has none)."""
    largest = max(np.linalg.norm(g) for g in reference.values())
    return {
        name: float(np.linalg.norm(found[name] - g) / np.linalg.norm(g))
        for name, g in reference.items()
        if np.linalg.norm(g) > 1e-4 * largest
    }


def autocast_differences(subject: Subject, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """What torch's own bfloat16 differs from its float32."""
    found = []
    for enabled in (True, False):
        module = copy.deepcopy(subject.module())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = subject.mean_loss(module, batch)
        loss.backward()
        found.append({n: p.grad.float().numpy() for n, p in module.named_parameters() if p.grad is not None})
    return differences(*found)


@pytest.mark.parametrize("name", TRIED)
def test_gradients_are_those_of_bfloat16(name: str, lowered: str, artifact: Callable[..., Path]) -> None:
    (batch,) = TRIED[name].batches(1, seed=6)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        with onnxft.TrainSession(artifact(name), lowered, precision=precision, threads=2) as session:
            gradients[precision] = session.gradients(batch)
    found, own = differences(gradients["bfloat16"], gradients["float32"]), autocast_differences(TRIED[name], batch)
    print(f"{name}: worst {max(found.values()):.1e}, torch's autocast {max(own.values()):.1e}")
    assert all(error < max(CLOSE, 2 * own[n]) for n, error in found.items()), found
    # One rounding to bfloat16 differs by 1e-3; float32 would by 1e-7.
    assert np.median(list(found.values())) > 1e-4, "these are the gradients of float32"


@pytest.mark.parametrize("name", TRIED)
def test_loss_is_close_and_weights_are_exact(name: str, lowered: str, artifact: Callable[..., Path]) -> None:
    (batch,) = TRIED[name].batches(1)
    batch["sample_weights"] = WEIGHTS
    steps, scores = {}, {}
    for provider, precision in (("cpu", "float32"), (lowered, "bfloat16")):
        with onnxft.TrainSession(artifact(name), provider, precision=precision, threads=2) as session:
            scores[precision] = session.evaluate(batch)
            steps[precision] = session.step(batch, lr=1e-3)
    for found in (steps, scores):
        assert found["bfloat16"].weight_sum == found["float32"].weight_sum
        assert found["bfloat16"].loss == pytest.approx(found["float32"].loss, rel=1e-2)


@pytest.mark.parametrize("name", TRIED)
def test_small_gradients_are_accumulated(name: str, lowered: str, artifact: Callable[..., Path]) -> None:
    """g + 7 · g/512: in bfloat16 each addition would be lost."""
    (batch,) = TRIED[name].batches(1)
    ones = np.ones(ROWS, np.float32)
    with onnxft.TrainSession(artifact(name), lowered, precision="bfloat16", threads=2) as session:
        start = session.parameters
        moved = []
        for micro_steps in (1, 8):
            session.set_parameters(start)
            weight = 0.0
            for i in range(micro_steps):
                weight += session.accumulate({**batch, "sample_weights": ones if i == 0 else ones / 512}).weight_sum
            session.update(lr=weight)  # cancels the division by the weight sum
            moved.append({n: session.parameters[n].astype(np.float64) - p for n, p in start.items()})
    for n, error in differences(moved[1], {n: m * (1 + 7 / 512) for n, m in moved[0].items()}).items():
        assert error < 1e-4, n  # a lost micro-batch would be 2e-3


def test_tiny_rates_move_the_weights(lowered: str, artifact: Callable[..., Path]) -> None:
    """p - 1e-7 g, as exactly as float32 can say it: in bfloat16 nothing would move."""
    (batch,) = SUBJECTS["mlp"].batches(1)
    with onnxft.TrainSession(artifact("mlp"), lowered, precision="bfloat16", threads=2) as session:
        start, gradients = session.parameters, session.gradients(batch)
        session.step(batch, lr=1e-7)
        after = session.parameters
    for name, p in start.items():
        expected = p - 1e-7 * gradients[name].astype(np.float64)
        assert (np.abs(after[name] - expected) <= np.spacing(np.abs(p))).all(), name
    assert any((after[name] != p).any() for name, p in start.items())


def test_a_step_is_gradients_and_update(lowered: str, artifact: Callable[..., Path]) -> None:
    (batch,) = SUBJECTS["convnet"].batches(1)
    after = []
    for split in (False, True):
        with onnxft.TrainSession(artifact("convnet", "adamw"), lowered, precision="bfloat16", threads=2) as session:
            if split:
                session.accumulate(batch)
                session.update(lr=1e-2)
            else:
                session.step(batch, lr=1e-2)
            after.append(session.parameters)
            placement = session.placement
        assert placement.precision == "bfloat16"
        assert set(placement.nodes) == {"gradients", "update"}
        by = {role: max(nodes, key=lambda n: nodes[n]) for role, nodes in placement.nodes.items()}
        assert by == {"gradients": lowered, "update": PROVIDERS[lowered].updates_on or lowered}
    assert all(np.array_equal(after[0][n], after[1][n]) for n in after[0])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resume_and_repetition_are_exact(
    optimizer: str, lowered: str, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    batches = SUBJECTS["convnet"].batches(6)
    ends = []
    for run in range(2):
        with onnxft.TrainSession(artifact("convnet", optimizer), lowered, precision="bfloat16", threads=2) as session:
            for i, batch in enumerate(batches):
                if i == 3:
                    session.save_checkpoint(tmp_path / str(run))
                session.step(batch, lr=1e-2)
                session.average(0.9)
            ends.append({**session.parameters, **{f"{n}/average": v for n, v in session.averages.items()}})
    with onnxft.TrainSession(artifact("convnet", optimizer), lowered, precision="bfloat16", threads=2) as session:
        session.load_checkpoint(tmp_path / "0")
        for batch in batches[3:]:
            session.step(batch, lr=1e-2)
            session.average(0.9)
        ends.append({**session.parameters, **{f"{n}/average": v for n, v in session.averages.items()}})
    for end in ends[1:]:
        assert all(np.array_equal(ends[0][n], end[n]) for n in ends[0])


def test_an_average_is_of_float32(lowered: str, artifact: Callable[..., Path]) -> None:
    """a + 0.001 (p - a): a bfloat16 average would stand still."""
    (batch,) = SUBJECTS["mlp"].batches(1)
    with onnxft.TrainSession(artifact("mlp"), lowered, precision="bfloat16", threads=2) as session:
        session.average(0.999)
        start = session.averages
        session.step(batch, lr=0.1)
        session.average(0.999)
        for name, a in start.items():
            expected = a + 0.001 * (session.parameters[name].astype(np.float64) - a)
            assert (np.abs(session.averages[name] - expected) <= 2 * np.spacing(np.abs(a))).all(), name


def test_the_model_learns(lowered: str, artifact: Callable[..., Path]) -> None:
    (batch,) = SUBJECTS["convnet"].batches(1)
    losses = {}
    for precision in ("float32", "bfloat16"):
        with onnxft.TrainSession(artifact("convnet", "adamw"), lowered, precision=precision, threads=2) as session:
            losses[precision] = [session.step(batch, lr=3e-3).loss for _ in range(60)]
    assert losses["bfloat16"][-1] < 0.1 * losses["bfloat16"][0]
    assert losses["bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=0.25)
