"""Parameters, checkpoints and the exported model of a session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file

import onnxft
from onnxft.errors import ArtifactError, ConfigError
from onnxft.files import sha256
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession

ROWS = 16


def batch_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((ROWS, 7)).astype(np.float32), "labels": rng.integers(0, 3, ROWS)}


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].tobytes()) == (value.dtype, value.tobytes()), name


def test_the_first_parameters_are_those_of_the_module(exported: Callable[..., Path]) -> None:
    module, _ = models.mlp()
    with TrainSession(exported("mlp"), threads=1) as session:
        assert_identical(session.parameters, {n: p.detach().numpy() for n, p in module.named_parameters()})


@pytest.fixture(scope="module")
def both_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which activations can be kept and computed again."""
    return onnxft.export(*models.transformer(), tmp_path_factory.mktemp("both") / "kinds", recompute=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_goes_on_with_the_other_kind_of_graphs(first: bool, both_kinds: Path, tmp_path: Path) -> None:
    def step(session: TrainSession, seed: int) -> None:
        if seed % 2:
            session.step(random_batch(session.manifest, 4, seed), lr=0.01)
        else:
            session.accumulate(random_batch(session.manifest, 4, seed))
            session.update(lr=0.01)

    with TrainSession(both_kinds, threads=1, recompute=first) as whole:
        for seed in range(4):
            step(whole, seed)
        expected = whole.parameters
    with TrainSession(both_kinds, threads=1, recompute=first) as begun:
        for seed in range(2):
            step(begun, seed)
        begun.save_checkpoint(tmp_path / "checkpoint")
    with TrainSession(both_kinds, threads=1, recompute=not first) as other:
        assert other.recomputes != first
        other.load_checkpoint(tmp_path / "checkpoint")
        for seed in range(2, 4):
            step(other, seed)
        assert_identical(other.parameters, expected)


def test_an_artifact_of_one_kind_is_not_recomputed(exported: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"'mlp' has no graphs that compute activations again\. Export it with --rec"):
        TrainSession(exported("mlp"), threads=1, recompute=True)
    with TrainSession(exported("mlp"), threads=1) as session:
        assert not session.recomputes


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_parameters_are_copies(steps: int, exported: Callable[..., Path]) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        for seed in range(steps):
            session.step(batch_of(seed), lr=0.1)
        taken = session.parameters
        kept = {name: value.copy() for name, value in taken.items()}
        for value in taken.values():
            value += 1
        assert_identical(session.parameters, kept)
        session.step(batch_of(9), lr=0.1)
        assert_identical(taken, {name: value + 1 for name, value in kept.items()})


def test_values_are_the_parameters_and_cannot_be_written(exported: Callable[..., Path]) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        session.step(random_batch(session.manifest, 16, 0), lr=1e-2)
        values, copies = session.values(), session.parameters
        assert {n: v.tobytes() for n, v in values.items()} == {n: v.tobytes() for n, v in copies.items()}
        for value in values.values():
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0


def test_a_model_is_exported_with_values_that_are_given(exported: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        before = session.parameters
        other = {name: value + 1 for name, value in before.items()}
        session.export_model(tmp_path / "given.onnx", {"fc1.bias": other["fc1.bias"]})
        with pytest.raises(ArtifactError, match=r"'fc1.bias' has the shape"):
            session.export_model(tmp_path / "wrong.onnx", {"fc1.bias": np.zeros(3, np.float32)})
        assert not (tmp_path / "wrong.onnx").exists()
        assert all((session.parameters[n] == v).all() for n, v in before.items())
        session.set_parameters({"fc1.bias": other["fc1.bias"]})
        session.export_model(tmp_path / "set.onnx")
    assert sha256(tmp_path / "given.onnx") == sha256(tmp_path / "set.onnx")


def test_new_parameters_are_taken_and_the_others_stay(exported: Callable[..., Path]) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        session.step(batch_of(1), lr=0.1)
        before = session.parameters
        bias = np.linspace(-1, 1, 11)  # float64 is converted
        session.set_parameters({"fc1.bias": bias})
        bias[:] = 7  # and not kept
        expected = {**before, "fc1.bias": np.linspace(-1, 1, 11).astype(np.float32)}
        assert_identical(session.parameters, expected)
        x = batch_of(2)["x"]
        found = session.predict({"x": x})["output"]
    module, _ = models.mlp()
    module.load_state_dict({name: torch.tensor(value) for name, value in expected.items()})
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fc1.bais": np.zeros(11)}, "'fc1.bais' is no trained parameter of 'mlp'. Did you mean 'fc1.bias'"),
        ({"fc1.bias": np.zeros(7)}, "'fc1.bias' has the shape [11], not [7]"),
        ({"fc1.bias": 0.0}, "'fc1.bias' has the shape [11], not []"),
        ({"fc1.bias": np.zeros(11, np.int64)}, "'fc1.bias' must be finite float32 numbers"),
        ({"fc1.bias": np.full(11, np.nan)}, "'fc1.bias' must be finite float32 numbers"),
        ({"fc1.bias": np.full(11, 1e300)}, "'fc1.bias' must be finite float32 numbers"),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(
    values: dict[str, Any], words: str, exported: Callable[..., Path]
) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        before = session.parameters
        with pytest.raises(ArtifactError) as err:
            session.set_parameters({"fc2.bias": np.ones(6), **values})
        assert words in str(err.value)
        assert_identical(session.parameters, before)


@pytest.mark.parametrize(
    ("model", "optimizer", "momentum"), [("dropped", "adamw", None), ("dropped", "sgd", 0.9), ("dropped", "sgd", None)]
)
def test_a_run_from_a_checkpoint_goes_on_bit_for_bit(
    model: str, optimizer: str, momentum: float | None, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """Dropout is in the model, so the random masks must go on as well."""
    artifact = exported(model, optimizer, momentum=momentum)
    with TrainSession(artifact, threads=1, seed=5) as session:
        for seed in range(3):
            session.step(batch_of(seed), lr=0.05)
        session.save_checkpoint(tmp_path / "c")
        saved = session.parameters
        losses = [session.step(batch_of(seed), lr=0.05).loss for seed in range(3, 6)]
        expected = session.parameters
    with TrainSession(artifact, threads=1, seed=99) as session:
        session.accumulate(batch_of(8))  # what the session did before leaves no trace
        session.load_checkpoint(tmp_path / "c")
        assert (session.step_count, session.seed) == (3, 5)
        assert_identical(session.parameters, saved)
        assert [session.step(batch_of(seed), lr=0.05).loss for seed in range(3, 6)] == losses
        assert_identical(session.parameters, expected)


def test_what_was_accumulated_before_a_checkpoint_is_loaded_is_forgotten(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    def update(session: TrainSession) -> dict[str, np.ndarray]:
        session.load_checkpoint(tmp_path / "c")
        session.accumulate(batch_of(2))
        session.update(lr=0.1)
        return session.parameters

    with TrainSession(exported("mlp"), threads=1) as session:
        session.save_checkpoint(tmp_path / "c")
        expected = update(session)
        session.accumulate(batch_of(3))
        assert_identical(update(session), expected)


@pytest.fixture
def checkpoint(exported: Callable[..., Path], tmp_path: Path) -> Path:
    with TrainSession(exported("mlp"), threads=1) as session:
        session.step(batch_of(1), lr=0.1)
        session.save_checkpoint(tmp_path / "c")
    return tmp_path / "c"


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a tensor file and its hash: a checkpoint that is whole but not ours."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    record(path.parent, lambda values: values["files"].update({path.name: sha256(path)}))


def record(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((checkpoint / "checkpoint.json").read_text())
    change(values)
    (checkpoint / "checkpoint.json").write_text(json.dumps(values))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "is not a checkpoint: it has no checkpoint.json"),
        (lambda c: (c / "checkpoint.json").unlink(), "is not a checkpoint"),
        (lambda c: (c / "checkpoint.json").write_text("{"), "is damaged"),
        (lambda c: record(c, lambda r: r.update(step_count="3")), "Expected `int`"),
        (lambda c: record(c, lambda r: r.update(step_count=-1)), "step_count or seed is out of range"),
        (lambda c: record(c, lambda r: r.update(seed=2**63)), "step_count or seed is out of range"),
        (lambda c: record(c, lambda r: r.update(optimizer="sgd")), "optimizer 'sgd', the artifact has 'adamw'"),
        (lambda c: (c / "state.safetensors").unlink(), "state.safetensors' is missing or damaged"),
        (lambda c: flip(c / "state.safetensors"), "state.safetensors' is missing or damaged"),
        (lambda c: flip(c / "parameters.safetensors"), "parameters.safetensors' is missing or damaged"),
        (lambda c: rewrite(c / "parameters.safetensors", lambda t: t.pop("fc1.bias")), "'fc1.bias' is missing"),
        (
            lambda c: rewrite(c / "parameters.safetensors", lambda t: t.update(x=np.zeros(3))),
            "parameter 'x' is unknown or has another shape",
        ),
        (
            lambda c: rewrite(c / "parameters.safetensors", lambda t: t.update({"fc1.bias": np.zeros(9, np.float32)})),
            "parameter 'fc1.bias' is unknown or has another shape",
        ),
        (
            lambda c: rewrite(c / "parameters.safetensors", lambda t: t.update({"fc1.bias": np.zeros(11)})),
            "parameter 'fc1.bias' is unknown or has another shape or type",
        ),
        (
            lambda c: rewrite(c / "state.safetensors", lambda t: t.pop("fc1.bias/exp_avg")),
            "state 'fc1.bias/exp_avg' is missing",
        ),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_checkpoint_changes_nothing(
    damage: Callable[[Path], Any], words: str, checkpoint: Path, exported: Callable[..., Path]
) -> None:
    damage(checkpoint)
    with TrainSession(exported("mlp"), threads=1) as session:
        before = session.parameters
        with pytest.raises(ArtifactError) as err:
            session.load_checkpoint(checkpoint)
        assert words in str(err.value)
        assert session.step_count == 0
        assert_identical(session.parameters, before)


def test_a_checkpoint_of_another_model_does_not_fit(checkpoint: Path, exported: Callable[..., Path]) -> None:
    with (
        TrainSession(exported("dropped"), threads=1) as session,
        pytest.raises(ArtifactError, match="written for 'mlp'"),
    ):
        session.load_checkpoint(checkpoint)


def test_a_checkpoint_does_not_replace_what_is_none(exported: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"mine")
    with TrainSession(exported("mlp"), threads=1) as session:
        with pytest.raises(ArtifactError, match="it would be deleted"):
            session.save_checkpoint(tmp_path / "photos")
        for _ in range(2):  # the second replaces the first
            session.save_checkpoint(tmp_path / "c")
    assert (tmp_path / "photos" / "1.png").read_bytes() == b"mine"


def test_the_exported_model_has_the_trained_weights(exported: Callable[..., Path], tmp_path: Path) -> None:
    artifact = exported("convnet")
    rng = np.random.default_rng(30)
    images, labels = rng.standard_normal((ROWS, 1, 24, 24)).astype(np.float32), rng.integers(0, 10, ROWS)
    with TrainSession(artifact, threads=1) as session:
        for _ in range(3):
            session.step({"image": images, "labels": labels}, lr=1e-2)
        session.export_model(tmp_path / "new" / "model.onnx")
        parameters = session.parameters
        predicted = session.predict({"image": images[:3]})["output"]
    onnx.checker.check_model(tmp_path / "new" / "model.onnx", full_check=True)
    runtime = ort.InferenceSession(tmp_path / "new" / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = runtime.run(None, {"image": images[:3]})
    module, _ = models.convnet()
    before = module.eval()(torch.tensor(images[:3])).detach().numpy()
    module.load_state_dict({**module.state_dict(), **{n: torch.tensor(v) for n, v in parameters.items()}})
    expected = module(torch.tensor(images[:3])).detach().numpy()
    assert np.abs(expected - before).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)
    assert sha256(artifact / "infer.onnx") != sha256(tmp_path / "new" / "model.onnx")
