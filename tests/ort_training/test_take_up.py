"""A checkpoint of one generator continued by the other, and what is refused there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import onnxft
from onnxft.errors import ArtifactError
from onnxft.files import sha256
from onnxft.runtime.session import TrainSession

NATIVE, ORT = "native", "ort-training"
BOTH_WAYS = [(NATIVE, ORT), (ORT, NATIVE)]
ROWS = 16
Exported = Callable[..., Path]


def opened(artifact: Path, seed: int = 3) -> TrainSession:
    return TrainSession(artifact, threads=1, seed=seed)


def batch_of(name: str, step: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, step])
    shape, classes = {"dropped": ((7,), 3), "mlp": ((7,), 5), "digits": ((1, 28, 28), 10)}[name]
    x = rng.standard_normal((rows, *shape)).astype(np.float32)
    return {"input" if name == "digits" else "x": x, "labels": rng.integers(0, classes, rows)}


def train(session: TrainSession, name: str, steps: range) -> list[float]:
    """Updates of every form: plain, short and weighted, clipped, accumulated."""
    losses = []
    for step in steps:
        match step % 4:
            case 0:
                losses.append(session.step(batch_of(name, step), lr=0.02).loss)
            case 1:
                weights = np.linspace(0.5, 2, ROWS - 3, dtype=np.float32)
                short = {**batch_of(name, step, ROWS - 3), "sample_weights": weights}
                losses.append(session.step(short, lr=0.01).loss)
            case 2:
                losses.append(session.step(batch_of(name, step), lr=0.02, max_norm=0.1).loss)
            case 3:
                losses += [session.accumulate(batch_of(name, 100 * step + n)).loss for n in range(2)]
                session.update(lr=0.02)
    return losses


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(found[name] - value).max()) for name, value in expected.items())


# ----- what is taken up -----


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
@pytest.mark.parametrize(
    ("name", "optimizer"), [("dropped", "adamw"), ("mlp", "sgd"), ("digits", "adamw")], ids=lambda v: v
)
def test_the_other_generator_goes_on_with_the_same_numbers(
    name: str, optimizer: str, first: str, second: str, exported: Exported, tmp_path: Path
) -> None:
    artifacts = {g: exported(name, optimizer, generator=g) for g in (first, second)}
    with opened(artifacts[first]) as before, opened(artifacts[second], seed=8) as after:
        train(before, name, range(3))
        before.save_checkpoint(tmp_path / "c")
        after.load_checkpoint(tmp_path / "c")
        assert (after.step_count, after.seed) == (3, 3)
        assert_identical(after.parameters, before.parameters)
        after.save_checkpoint(tmp_path / "d")
        states = {g: load_file(tmp_path / place / "state.safetensors") for g, place in ((first, "c"), (second, "d"))}
        assert int(states[ORT].pop("step")) == 3
        if optimizer == "adamw":
            assert_identical(states[second], states[first])
        else:
            assert (states[NATIVE], [v.any() for v in states[ORT].values()]) == ({}, [False] * 6)
        losses = [train(session, name, range(3, 11)) for session in (before, after)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
        assert distance(after.parameters, before.parameters) < 2e-4


def test_without_the_state_the_numbers_would_be_others(exported: Exported, tmp_path: Path) -> None:
    """That is what the tolerance above has to tell apart."""
    with opened(exported("dropped")) as before, opened(exported("dropped", generator=ORT)) as after:
        train(before, "dropped", range(3))
        after.set_parameters(before.parameters)
        for session in (before, after):
            train(session, "dropped", range(3, 11))
        assert distance(after.parameters, before.parameters) > 1e-2


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_there_and_back_changes_nothing(
    first: str, second: str, steps: int, exported: Exported, tmp_path: Path
) -> None:
    artifacts = {g: exported("dropped", generator=g) for g in (first, second)}
    for place, generator in enumerate((first, second, first)):
        with opened(artifacts[generator], seed=place) as session:
            if place:
                session.load_checkpoint(tmp_path / str(place - 1))
            else:
                train(session, "dropped", range(steps))
            session.save_checkpoint(tmp_path / str(place))
    for file in ("parameters.safetensors", "state.safetensors"):
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


# ----- what is refused -----


@pytest.fixture
def written(exported: Exported, tmp_path: Path) -> Callable[..., Path]:
    """written(generator, use=None, **export options of `dropped`): a checkpoint after two updates and `use`."""

    def make(generator: str, use: Callable[[TrainSession], Any] | None = None, **options: Any) -> Path:
        name = options.pop("name", "dropped")
        with opened(exported(name, generator=generator, **options)) as session:
            if name == "dropped":
                train(session, "dropped", range(2))
            if use is not None:
                use(session)
            session.save_checkpoint(tmp_path / "c")
        return tmp_path / "c"

    return make


def record(**changes: Any) -> Callable[[Path], None]:
    """Changes in checkpoint.json, those of `trained` in there."""

    def change(checkpoint: Path) -> None:
        path = checkpoint / "checkpoint.json"
        values = json.loads(path.read_text())
        for key, value in changes.items():
            (values if key in values else values["trained"])[key] = value
        path.write_text(json.dumps(values))

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "parameters.safetensors"
        values = load_file(path)
        del values[name]
        save_file(values, path)
        files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
        record(files={**files, path.name: sha256(path)})(checkpoint)

    return change


def decay(session: TrainSession) -> None:
    session.step(batch_of("dropped", 9), lr=0.01, weight_decay=0.2)


AVERAGED = {"use": lambda session: session.average(0.9)}
SCALED = {"scale": 1024.0, "good": 3, "skipped": 0}
REFUSED = {
    # what: (generator of the checkpoint, how it is made, damage, how the artifact is exported, words)
    "averages": (NATIVE, AVERAGED, None, {}, r"holds averages of the parameters \(ema\), which 'ort-training'"),
    "loss scale": (NATIVE, {}, record(loss_scale=SCALED), {}, "holds the loss scale 1024 of a float16 run"),
    "momentum": (
        NATIVE, {"optimizer": "sgd", "momentum": 0.9}, None, {"optimizer": "sgd"},
        r"with optimizer option momentum 0\.9, the artifact has 0\.0",
    ),
    "kind": (NATIVE, {"optimizer": "adam"}, None, {}, "with optimizer adam, the artifact has adamw"),
    "eps": (ORT, {"eps": 1e-3}, None, {}, r"with optimizer option eps 0\.001, the artifact has 1e-08"),
    "decay of the artifact": (ORT, {"weight_decay": 0.3}, None, {}, r"weight decays {'default': 0\.3}, .*0\.01"),
    "decay of the updates": (NATIVE, {"use": decay}, None, {}, r"weight decays {'default': 0\.2}, .*0\.01"),
    "loss": (NATIVE, {}, record(loss={"kind": "cross_entropy", "output": "output", "num_classes": 3, "delta": 2.0}),
             {}, r"with loss delta 2\.0, the artifact has 1\.0"),
    "masks": (NATIVE, {}, None, {"dropout": False}, "before 2 drawn by onnxft and 0 by the runtime, now 0 drawn"),
    "groups": (NATIVE, {}, record(groups=[{"name": "head", "lr_factor": 0.5}]), {}, "with parameter groups .*'head'"),
    "classes": (NATIVE, {}, record(classes=["a", "b", "c"]), {}, "with classes"),
    "frozen": (ORT, {}, record(frozen="0"), {}, "the model around what is trained is another"),
    "parameter": (NATIVE, {}, without("fc2.bias"), {}, "it lacks 'fc2.bias', which the artifact trains"),
    "counter": (ORT, {}, record(step_count=5), {}, "optimizer has counted 2 updates, and 5 were made"),
    "statistics": (
        NATIVE, {"name": "normed", "train_batchnorm": ("bn1",)}, None, {"name": "normed"},
        "it holds 'bn1.running_mean', a parameter or running statistic",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_and_nothing_changes(
    case: str, written: Callable[..., Path], exported: Exported
) -> None:
    generator, made, damage, options, words = REFUSED[case]
    checkpoint = written(generator, **made)
    if damage is not None:
        damage(checkpoint)
    name = options.pop("name", "dropped") if "name" in (options := dict(options)) else "dropped"
    other = ORT if generator == NATIVE else NATIVE
    with opened(exported(name, generator=other, **options)) as session:
        before = session.parameters
        with pytest.raises(ArtifactError, match=words) as caught:
            session.load_checkpoint(checkpoint)
        assert f"of the generator '{generator}' cannot go on with '{other}'" in str(caught.value)
        assert "--weights" in str(caught.value)
        assert (session.step_count, session.seed) == (0, 3)
        assert_identical(session.parameters, before)


@pytest.mark.parametrize("generator", [NATIVE, ORT])
def test_masks_that_the_runtime_draws_cannot_be_resumed(
    generator: str, written: Callable[..., Path], exported: Exported
) -> None:
    checkpoint = written(generator)
    with opened(exported("dropped", generator=ORT, standalone=True)) as session:
        before = session.parameters
        with pytest.raises(
            ArtifactError, match=r"draws for .* itself, and its generator cannot be put back.*--weights"
        ):
            session.load_checkpoint(checkpoint)
        assert_identical(session.parameters, before)


def test_a_run_with_masks_of_the_runtime_is_not_taken_up(exported: Exported, tmp_path: Path) -> None:
    with opened(exported("dropped", generator=ORT, standalone=True)) as session:
        session.step(batch_of("dropped", 0), lr=0.1)
        session.save_checkpoint(tmp_path / "c")
    with (
        opened(exported("dropped", dropout=False)) as session,
        pytest.raises(ArtifactError, match="before 0 drawn by onnxft and 2 by the runtime, now 0"),
    ):
        session.load_checkpoint(tmp_path / "c")


def test_a_checkpoint_from_before_this_was_recorded_is_for_the_same_generator_alone(
    written: Callable[..., Path], exported: Exported
) -> None:
    checkpoint = written(NATIVE)
    record(trained=None)(checkpoint)
    with opened(exported("dropped")) as session:
        session.load_checkpoint(checkpoint)
        assert session.step_count == 2
    with opened(exported("dropped", generator=ORT)) as session, pytest.raises(ArtifactError, match="state 'step'"):
        session.load_checkpoint(checkpoint)


class Head(nn.Module):
    def __init__(self, body: int, head: int) -> None:
        super().__init__()
        torch.manual_seed(body)
        self.body = nn.Linear(7, 5)
        torch.manual_seed(head)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize(("body", "head", "words"), [(1, 9, None), (2, 2, "the values of what is frozen")])
def test_what_is_frozen_must_be_the_same_and_what_is_trained_need_not(
    body: int, head: int, words: str | None, exported: Exported, tmp_path: Path
) -> None:
    exported("mlp", generator=ORT)  # skips where its environment is not there
    x = torch.zeros(6, 7)
    made = [
        onnxft.export(module, x, tmp_path / generator, trainable=["head.*"], generator=generator)
        for module, generator in ((Head(1, 2), NATIVE), (Head(body, head), ORT))
    ]
    with opened(made[0]) as before, opened(made[1]) as after:
        before.save_checkpoint(tmp_path / "c")
        if words is None:
            after.load_checkpoint(tmp_path / "c")
            assert_identical(after.parameters, before.parameters)
        else:
            with pytest.raises(ArtifactError, match=words):
                after.load_checkpoint(tmp_path / "c")
