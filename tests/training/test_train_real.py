"""The loop over a real session of onnxruntime: pictures that a small network can learn."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from onnxft.errors import DataError
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.data import Dataset
from onnxft.training.loop import run, train
from onnxft.training.progress import Progress


def pictures(rows, seed):
    """A bright square in one of ten places says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 10
    image = rng.normal(0, 0.3, (rows, 1, 28, 28)).astype(np.float32)
    for row, label in enumerate(labels):
        top, left = 14 * (label // 5), 5 * (label % 5)
        image[row, 0, top : top + 9, left : left + 6] += 2
    return {"image": image, "labels": labels}


OPTIONS = {"epochs": 3, "lr": 3e-3, "threads": 1, "schedule": "cosine", "warmup": 0.1, "seed": 3}


class Stop(Progress):
    """Ctrl-C during the given update."""

    def __init__(self, update):
        self.update = update

    def step(self, batches, rows, loss, lr):
        self.update -= 1
        if self.update == 0:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def whole(digits_artifact, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return run(digits_artifact, pictures(75, 0), OPTIONS, val=pictures(30, 1), run_dir=directory)


def test_a_real_network_learns(whole):
    assert whole.before["balanced_accuracy"] < 0.5
    assert whole.after["balanced_accuracy"] > 0.9
    assert {"model.onnx", "results.csv", "checkpoints/last"} <= set(whole.files)


def test_the_exported_model_is_the_best_epoch(whole, digits_artifact):
    import onnxruntime

    val = pictures(30, 1)
    model = onnxruntime.InferenceSession(whole.directory / "model.onnx", providers=["CPUExecutionProvider"])
    (scores,) = model.run(None, {"image": val["image"]})
    assert np.mean(scores.argmax(axis=1) == val["labels"]) == pytest.approx(whole.after["accuracy"])
    with TrainSession(digits_artifact, threads=1) as session:
        session.set_parameters(load_file(whole.directory / "weights" / "best.safetensors"))
        outputs = session.predict({"image": val["image"]})
    np.testing.assert_allclose(next(iter(outputs.values())), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", [4, 10])
def test_a_resumed_run_equals_one_that_was_never_stopped(whole, digits_artifact, tmp_path, update):
    data, val, directory = pictures(75, 0), pictures(30, 1), tmp_path / "stopped"
    stopped = run(digits_artifact, data, OPTIONS, val=val, run_dir=directory, progress=Stop(update))
    assert stopped.end == "interrupted"
    resumed = run(digits_artifact, data, val=val, run_dir=directory, resume=True)
    assert resumed.end == "complete"
    for name in ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx"):
        assert (directory / name).read_bytes() == (whole.directory / name).read_bytes(), name


def test_accumulated_batches_equal_one_large_batch(digits_artifact, tmp_path):
    data = pictures(32, 0)
    curves = []
    for size, accumulate in ((16, 1), (4, 4)):
        config = TrainConfig(epochs=2, lr=1e-3, batch_size=size, accumulate=accumulate, clip_norm=0.5, threads=1)
        with TrainSession(digits_artifact, threads=1, batch_size=size) as session:
            train(session, Dataset(data), None, config, tmp_path / str(size))
            curves.append(session.parameters)
    for name, value in curves[0].items():
        np.testing.assert_allclose(curves[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_bytes_are_not_scaled_silently(digits_artifact, tmp_path):
    data = pictures(16, 0)
    data["image"] = (data["image"] * 50).clip(0, 255).astype(np.uint8)
    with pytest.raises(DataError, match=r"'image'.*uint8.*convert"):
        run(digits_artifact, data, {"threads": 1}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
