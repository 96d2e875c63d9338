"""Moving averages of the parameters: when they are there, what sees them, and what a checkpoint keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file, save_file

from onnxft.errors import ArtifactError, ConfigError
from onnxft.files import sha256
from onnxft.manifest import FILE_NAME
from onnxft.runtime import graph_runs
from onnxft.runtime.buffers import BoundRunner, BoundStore
from onnxft.runtime.session import TrainSession
from onnxft.runtime.values import ValueRunner, ValueStore

ROWS = 16


def batch_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((ROWS, 7)).astype(np.float32), "labels": rng.integers(0, 3, ROWS)}


def train(session: TrainSession, seeds: range, decay: float = 0.8) -> None:
    for seed in seeds:
        session.step(batch_of(seed), lr=0.05)
        session.average(decay)


def content(values: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in values.items()}


def without_the_graph(artifact: Path, folder: Path) -> Path:
    """The artifact as it was written before there were averages."""
    old = shutil.copytree(artifact, folder)
    values = json.loads((old / FILE_NAME).read_text())
    del values["graphs"]["average"], values["files"]["average.onnx"]
    (old / FILE_NAME).write_text(json.dumps(values))
    (old / "average.onnx").unlink()
    return old


def test_the_first_call_copies_and_memory_is_taken_only_then(exported: Callable[..., Path]) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        session.step(batch_of(0), lr=0.05)
        store = session._engine._store
        with pytest.raises(ConfigError, match="never averaged"):
            _ = session.averages
        assert not [key for key, _ in store._buffers if key.endswith("/average")]
        session.average(0.9)
        assert content(session.averages) == content(session.parameters)
        session.averages["fc1.bias"][:] = 7  # a copy
        session.average(0.9)
        assert content(session.averages) == content(session.parameters)
        # One buffer each: the graph writes in place.
        names = [key for key, _ in store._buffers if key.endswith("/average")]
        assert len(names) == len(set(names)) == len(session.parameters)
        assert "average" in session.placement.nodes


def test_the_decay_is_subtracted_in_float64(exported: Callable[..., Path]) -> None:
    decay = 0.999999
    with TrainSession(exported("mlp"), threads=1) as session:
        session.set_parameters({"fc1.bias": np.zeros(11)})
        session.average(decay)
        session.set_parameters({"fc1.bias": np.ones(11)})
        session.average(decay)
        found = session.averages["fc1.bias"]
    np.testing.assert_allclose(found, 1e-6, rtol=1e-6)  # in float32, 1 - decay is 1.0133e-6


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_a_decay_out_of_range_is_an_error(decay: float, exported: Callable[..., Path]) -> None:
    with (
        TrainSession(exported("mlp"), threads=1) as session,
        pytest.raises(ConfigError, match="at least 0 and below 1"),
    ):
        session.average(decay)


def test_both_ways_of_binding_are_the_same(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(store: type, runner: Any) -> dict[str, bytes]:
        monkeypatch.setattr(graph_runs, "BoundStore", store)
        monkeypatch.setattr(graph_runs, "BoundRunner", runner)
        with TrainSession(exported("mlp"), threads=1) as session:
            train(session, range(5))
            with session.averaged():
                scores = session.evaluate(batch_of(9))
            return {**content(session.averages), **content(scores.outputs), "loss": np.array(scores.loss).tobytes()}

    bound = run(BoundStore, BoundRunner)
    assert bound == run(ValueStore, ValueRunner)


def test_evaluation_and_export_see_the_averages(exported: Callable[..., Path], tmp_path: Path) -> None:
    batch = batch_of(9)
    with TrainSession(exported("mlp"), threads=1) as session:
        train(session, range(4))
        averages, parameters = session.averages, session.parameters
        with session.averaged() as same:
            assert same is session
            assert content(session.parameters) == content(averages)
            output = session.predict({"x": batch["x"]})["output"]
            session.export_model(tmp_path / "model.onnx")
        assert content(session.parameters) == content(parameters)
        outside = session.predict({"x": batch["x"]})["output"]
    assert np.abs(output - outside).max() > 1e-3
    model = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(model.run(None, {"x": batch["x"]})[0], output, rtol=1e-5, atol=1e-6)


def test_running_statistics_stay_the_current_ones(exported: Callable[..., Path]) -> None:
    rng = np.random.default_rng(4)
    image = rng.standard_normal((ROWS, 2, 9, 8)).astype(np.float32)
    with TrainSession(exported("normed", train_batchnorm=("bn1", "bn3")), threads=1) as session:
        for _ in range(3):
            session.step({"image": image, "labels": np.arange(ROWS) % 4}, lr=0.01)
            session.average(0.9)
        before = content(session.buffers)
        with session.averaged():
            assert content(session.buffers) == before


CALLS: dict[str, Callable[[TrainSession, Path], Any]] = {
    "step()": lambda s, p: s.step(batch_of(1), lr=0.1),
    "accumulate()": lambda s, p: s.accumulate(batch_of(1)),
    "update()": lambda s, p: s.update(lr=0.1),
    "gradients()": lambda s, p: s.gradients(batch_of(1)),
    "average()": lambda s, p: s.average(0.5),
    "averaged()": lambda s, p: s.averaged().__enter__(),
    "set_parameters()": lambda s, p: s.set_parameters({}),
    "save_checkpoint()": lambda s, p: s.save_checkpoint(p),
    "load_checkpoint()": lambda s, p: s.load_checkpoint(p),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_changes_the_session_is_refused_within(call: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        with pytest.raises(ConfigError, match="never averaged"), session.averaged():
            pass
        train(session, range(2))
        parameters, averages = content(session.parameters), content(session.averages)
        with pytest.raises(ConfigError) as err, session.averaged():
            CALLS[call](session, tmp_path / "c")
        assert str(err.value).startswith(f"{call} is refused within averaged()")
        assert content(session.parameters) == parameters  # given back after the error
        assert content(session.averages) == averages
        assert not (tmp_path / "c").exists()
        session.step(batch_of(3), lr=0.1)


def test_averages_go_on_from_a_checkpoint_bit_for_bit(exported: Callable[..., Path], tmp_path: Path) -> None:
    artifact = exported("dropped")
    with TrainSession(artifact, threads=1, seed=5) as session:
        train(session, range(3))
        session.save_checkpoint(tmp_path / "c")
        saved = content(session.averages)
        train(session, range(3, 6))
        expected = content(session.averages), content(session.parameters)
    for trained_before in (0, 2):
        with TrainSession(artifact, threads=1) as session:
            train(session, range(7, 7 + trained_before))
            session.load_checkpoint(tmp_path / "c")
            assert content(session.averages) == saved
            train(session, range(3, 6))
            assert (content(session.averages), content(session.parameters)) == expected


def test_a_checkpoint_without_averages_forgets_them(exported: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        session.save_checkpoint(tmp_path / "c")
        assert {p.name for p in (tmp_path / "c").iterdir()} == {
            "checkpoint.json", "parameters.safetensors", "state.safetensors",
        }  # fmt: skip
        train(session, range(3))
        first = content(session.averages)
        session.load_checkpoint(tmp_path / "c")
        with pytest.raises(ConfigError, match="never averaged"):
            _ = session.averages
        train(session, range(3))
        assert content(session.averages) == first


def rewrite(checkpoint: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    path = checkpoint / "averages.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    record["files"][path.name] = sha256(path)
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: (c / "averages.safetensors").unlink(), "averages.safetensors' is missing or damaged"),
        (lambda c: (c / "averages.safetensors").write_bytes(b"1"), "averages.safetensors' is missing or damaged"),
        (lambda c: rewrite(c, lambda t: t.pop("fc1.bias")), "average 'fc1.bias' is missing"),
        (lambda c: rewrite(c, lambda t: t.update(x=np.zeros(3))), "average 'x' is unknown"),
        (lambda c: rewrite(c, lambda t: t.update({"fc1.bias": np.zeros(11)})), "average 'fc1.bias' is unknown or has"),
    ],
)
def test_damaged_averages_change_nothing(
    damage: Callable[[Path], Any], words: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        train(session, range(2))
        session.save_checkpoint(tmp_path / "c")
    damage(tmp_path / "c")
    with TrainSession(exported("mlp"), threads=1) as session:
        before = content(session.parameters)
        with pytest.raises(ArtifactError) as err:
            session.load_checkpoint(tmp_path / "c")
        assert words in str(err.value)
        assert content(session.parameters) == before


def test_an_artifact_without_the_graph_says_so(exported: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        train(session, range(2))
        session.save_checkpoint(tmp_path / "c")
    with TrainSession(without_the_graph(exported("mlp"), tmp_path / "old"), threads=1) as session:
        assert not session.supports_averages
        session.step(batch_of(0), lr=0.1)
        with pytest.raises(ConfigError, match="has no graph for averages of the parameters: export it again"):
            session.average(0.9)
        with pytest.raises(ArtifactError, match="holds averages of the parameters, for which the artifact"):
            session.load_checkpoint(tmp_path / "c")
