"""A session whose BatchNorm layers train: bn1 and bn3 of `normed` move, bn2 does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime as ort
import pytest
import torch

import onnxft
from onnxft.errors import ArtifactError, ConfigError, DataError
from onnxft.runtime.session import TrainSession

ROWS = 8
NAMES = ["bn1.running_mean", "bn1.running_var", "bn3.running_mean", "bn3.running_var"]


@pytest.fixture(scope="module")
def artifact(exported: Callable[..., Path]) -> Path:
    return exported("normed", batch_size=ROWS, train_batchnorm=("bn1", "bn3"))


@pytest.fixture
def session(artifact: Path) -> Any:
    with TrainSession(artifact, threads=1, seed=2) as opened:
        yield opened


def batch_of(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (2 * rng.standard_normal((rows, 2, 9, 8)) + 0.5).astype(np.float32)
    return {"image": x, "labels": rng.integers(0, 4, rows)}


def values(session: TrainSession) -> dict[str, np.ndarray]:
    return {**session.parameters, **session.buffers}


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].tobytes()) == (value.dtype, value.tobytes()), name


def test_the_first_statistics_are_those_of_the_module_and_copies(session: TrainSession) -> None:
    expected = {name: value.numpy() for name, value in models.normed()[0].named_buffers() if name in NAMES}
    assert list(session.buffers) == NAMES
    assert not set(NAMES) & set(session.parameters)
    for value in session.buffers.values():
        value += 1
    assert_identical(session.buffers, expected)


def test_statistics_move_in_steps_alone(session: TrainSession) -> None:
    before = values(session)
    gradients = session.gradients(batch_of(1))
    session.evaluate(batch_of(2, rows=11))
    session.predict({"image": batch_of(3, rows=3)["image"]})
    assert set(gradients) == set(session.parameters)
    assert_identical(values(session), before)
    session.step(batch_of(1), lr=1e-2)
    for name, value in session.buffers.items():
        assert np.abs(value - before[name]).max() > 1e-2, name


def test_micro_steps_move_them_once_each_in_order(session: TrainSession) -> None:
    """As torch does under accumulation; parameters stay where they are until the update."""
    module, _ = models.normed()
    module.train()
    module.dropout.eval()  # bn1 lies before it
    before = session.parameters
    for seed in range(3):
        session.accumulate(batch_of(seed))
        with torch.no_grad():
            module(torch.tensor(batch_of(seed)["image"]))
        for which in NAMES[:2]:
            expected = module.get_buffer(which).numpy()
            np.testing.assert_allclose(session.buffers[which], expected, rtol=1e-5, atol=1e-6)
        assert_identical(session.parameters, before)
    statistics = session.buffers
    session.update(lr=1e-2)
    assert_identical(session.buffers, statistics)
    assert all(np.abs(session.parameters[name] - value).max() > 1e-3 for name, value in before.items())


def test_a_fused_step_equals_accumulate_and_update(artifact: Path) -> None:
    runs = []
    for split in (False, True):
        with TrainSession(artifact, threads=1, seed=2) as session:
            for seed in range(4):
                if split:
                    session.accumulate(batch_of(seed))
                    session.update(lr=1e-2)
                else:
                    session.step(batch_of(seed), lr=1e-2)
            runs.append(values(session))
    fused, apart = runs
    for name, value in apart.items():
        np.testing.assert_allclose(fused[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_steps_of_both_kinds_take_turns(artifact: Path) -> None:
    """Parameters and statistics change buffers apart from each other: each way of stepping reads the newest."""
    with TrainSession(artifact, threads=1, seed=2) as one, TrainSession(artifact, threads=1, seed=2) as other:
        for seed in range(5):
            one.step(batch_of(seed), lr=1e-2)
            if seed % 2:
                other.step(batch_of(seed), lr=1e-2)
            else:
                other.step(batch_of(seed), lr=1e-2, max_norm=1e9)  # by accumulate and update
        for name, value in values(one).items():
            np.testing.assert_allclose(values(other)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_checkpoint_holds_them_and_a_run_goes_on_bit_for_bit(artifact: Path, tmp_path: Path) -> None:
    with TrainSession(artifact, threads=1, seed=5) as session:
        for seed in range(3):
            session.step(batch_of(seed), lr=1e-2)
        session.save_checkpoint(tmp_path / "c")
        saved = values(session)
        losses = [session.step(batch_of(seed), lr=1e-2).loss for seed in range(3, 5)]
        expected = values(session)
    with TrainSession(artifact, threads=1, seed=99) as session:
        session.accumulate(batch_of(8))
        session.load_checkpoint(tmp_path / "c")
        assert_identical(values(session), saved)
        assert [session.step(batch_of(seed), lr=1e-2).loss for seed in range(3, 5)] == losses
        assert_identical(values(session), expected)


def test_a_checkpoint_without_them_does_not_fit(
    exported: Callable[..., Path], session: TrainSession, tmp_path: Path
) -> None:
    with TrainSession(exported("normed", batch_size=ROWS), threads=1) as frozen:
        assert frozen.buffers == {}
        frozen.save_checkpoint(tmp_path / "c")
    with pytest.raises(ArtifactError, match=r"'bn1\.running_mean' is missing"):
        session.load_checkpoint(tmp_path / "c")


def test_the_exported_model_and_the_evaluation_equal_torch_in_eval_mode(session: TrainSession, tmp_path: Path) -> None:
    module = models.normed()[0].eval()
    images = batch_of(7, rows=11)["image"]
    before = module(torch.tensor(images)).detach().numpy()
    for seed in range(5):
        session.step(batch_of(seed), lr=1e-2)
    session.export_model(tmp_path / "model.onnx")
    runtime = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = runtime.run(None, {"image": images})
    state = {name: torch.tensor(value) for name, value in values(session).items()}
    module.load_state_dict({**module.state_dict(), **state})
    expected = module(torch.tensor(images)).detach().numpy()
    assert np.abs(expected - before).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.predict({"image": images})["output"], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_run_are_taken_back(session: TrainSession, artifact: Path) -> None:
    session.step(batch_of(1), lr=1e-2)
    with TrainSession(artifact, threads=1) as other:
        other.set_parameters(values(session))
        assert_identical(values(other), values(session))
        other.step(batch_of(2), lr=1e-2)
        kept = other.buffers
        other.set_parameters({"bn3.running_var": np.full(7, 2.0)})
        assert_identical(other.buffers, {**kept, "bn3.running_var": np.full(7, 2, np.float32)})


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"bn2.running_mean": np.zeros(6)}, "'bn2.running_mean' is no trained parameter"),
        ({"bn1.running_var": np.full(5, -1.0)}, "'bn1.running_var' is a variance and must not be negative"),
        ({"bn1.running_mean": np.zeros(6)}, "'bn1.running_mean' has the shape [5], not [6]"),
    ],
)
def test_statistics_that_do_not_fit_change_nothing(
    new: dict[str, np.ndarray], words: str, session: TrainSession
) -> None:
    before = values(session)
    with pytest.raises(ArtifactError) as err:
        session.set_parameters({"bn3.running_mean": np.ones(7), **new})
    assert words in str(err.value)
    assert_identical(values(session), before)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (batch_of(1, rows=5), "exactly 8 rows (batch_size), all of weight 1; this one has 5 rows."),
        ({**batch_of(1), "sample_weights": np.arange(8)}, "this one has 8 rows with weights of their own"),
    ],
)
def test_rows_that_would_falsify_the_statistics_are_refused(
    batch: dict[str, np.ndarray], words: str, session: TrainSession
) -> None:
    before = values(session)
    assert not session.supports_weights
    for call in (lambda b: session.step(b, lr=0.1), session.accumulate, session.gradients):
        with pytest.raises(DataError) as err:
            call(batch)
        assert words in str(err.value)
        assert "BatchNorm 'bn1' trains on the statistics of the batch" in str(err.value)
    assert_identical(values(session), before)


def test_weights_of_one_and_short_evaluations_are_taken(session: TrainSession) -> None:
    full = batch_of(1)
    ones = session.gradients({**full, "sample_weights": np.ones(ROWS)})
    assert_identical(ones, session.gradients(full))
    part = {name: array[:3] for name, array in full.items()}
    scores = session.evaluate({**full, "sample_weights": np.repeat([1.0, 0.0], [3, 5])})
    assert session.evaluate(part).loss == pytest.approx(scores.loss, rel=1e-6)


def test_a_single_value_of_a_channel_is_refused_when_the_session_opens(
    artifact: Path, exported: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"BatchNorm 'bn3' .* one value of each channel, which has no variance"):
        TrainSession(artifact, batch_size=1)
    with TrainSession(exported("normed", train_batchnorm=("bn1",)), threads=1, batch_size=1) as session:
        assert np.isfinite(session.step(batch_of(1, rows=1), lr=1e-3).loss)  # 72 positions of one row


def test_a_short_last_batch_is_left_out_of_a_run_which_resumes_exactly(artifact: Path, tmp_path: Path) -> None:
    rows = batch_of(4, rows=21)
    options = {"epochs": 2, "lr": 1e-2, "threads": 1, "metric": "loss"}
    run = onnxft.train(artifact, rows, options, run=tmp_path / "whole", progress=False)
    assert run.epochs == 2
    onnxft.train(artifact, rows, {**options, "epochs": 1}, run=tmp_path / "parts", progress=False)
    onnxft.train(artifact, rows, {"epochs": 2}, run=tmp_path / "parts", resume=True, progress=False)
    for file in ("weights/last.safetensors", "weights/best.safetensors", "results.csv", "model.onnx"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    results = (tmp_path / "whole" / "results.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in results] == ["step", "0", "2", "4"]  # 21 rows are 2 batches of 8
    with pytest.raises(DataError, match=r"'sample_weights', but BatchNorm 'bn1' trains .*without --train-batchnorm"):
        onnxft.train(artifact, {**rows, "sample_weights": np.ones(21)}, options, run=tmp_path / "w", progress=False)


def test_the_weights_and_the_model_of_a_run_agree(artifact: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    rows = batch_of(4, rows=16)
    onnxft.train(artifact, rows, {"epochs": 2, "lr": 1e-2}, run=tmp_path / "run", progress=False)
    best = load_file(tmp_path / "run/weights/best.safetensors")
    assert set(NAMES) < set(best)
    module = models.normed()[0].eval()
    module.load_state_dict({**module.state_dict(), **{n: torch.tensor(v) for n, v in best.items()}})
    runtime = ort.InferenceSession(tmp_path / "run/model.onnx", providers=["CPUExecutionProvider"])
    (found,) = runtime.run(None, {"image": rows["image"]})
    expected = module(torch.tensor(rows["image"])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
