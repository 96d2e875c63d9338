"""The loop over a real session of onnxruntime: pictures that a small network can learn."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_fake_session import StopAfter

from onnxft.data.arrays import ArrayDataset
from onnxft.errors import ConfigError, DataError
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.loop import run, train
from onnxft.yaml_file import read_yaml


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


@pytest.fixture(scope="module")
def whole(digits_artifact, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return run(digits_artifact, pictures(75, 0), OPTIONS, val=pictures(30, 1), run_dir=directory)


def test_auto_is_pinned_to_what_it_found(digits_artifact, tmp_path, monkeypatch):
    options = {**OPTIONS, "provider": "auto", "schedule": "constant", "warmup": None, "epochs": 1}
    directory = tmp_path / "auto"
    made = run(digits_artifact, pictures(40, 0), options, run_dir=directory)
    assert made.config.provider == "cpu"
    assert read_yaml(directory / "config.yaml")["provider"] == "cpu"
    placement = json.loads((directory / "env.json").read_text())["placement"]
    assert (placement["requested"], placement["obtained"]) == ("auto", "cpu")
    assert placement["reason"]
    monkeypatch.setattr("onnxft.runtime.session.choose", lambda *_: pytest.fail("it was chosen again"))
    for more in ({"epochs": 2}, {"epochs": 3, "provider": "auto"}):
        assert run(digits_artifact, pictures(40, 0), more, run_dir=directory, resume=True).provider == "cpu"
    with pytest.raises(ConfigError, match="begun with provider cpu, and --resume cannot go on with provider openvino"):
        run(digits_artifact, pictures(40, 0), {"provider": "openvino"}, run_dir=directory, resume=True)


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
    stopped = run(digits_artifact, data, OPTIONS, val=val, run_dir=directory, progress=StopAfter(update))
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
            train(session, ArrayDataset(data), None, config, tmp_path / str(size))
            curves.append(session.parameters)
    for name, value in curves[0].items():
        np.testing.assert_allclose(curves[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_bytes_are_not_scaled_silently(digits_artifact, tmp_path):
    data = pictures(16, 0)
    data["image"] = (data["image"] * 50).clip(0, 255).astype(np.uint8)
    with pytest.raises(DataError, match=r"'image'.*uint8.*convert"):
        run(digits_artifact, data, {"threads": 1}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


AVERAGED = {**OPTIONS, "ema": 0.9}


@pytest.fixture(scope="module")
def averaged(digits_artifact, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "averaged"
    return run(digits_artifact, pictures(75, 0), AVERAGED, val=pictures(30, 1), run_dir=directory)


def test_with_ema_the_averages_are_evaluated_and_kept(averaged, whole, digits_artifact):
    read = {name: (averaged.directory / name).read_text() for name in ("results.csv", "config.yaml")}
    assert "ema: 0.9" in read["config.yaml"]
    rows = [line.split(",") for line in read["results.csv"].splitlines()]
    plain = [line.split(",") for line in (whole.directory / "results.csv").read_text().splitlines()]
    # Training itself is the same, evaluation is not; before the first update there is no average.
    assert [row[:4] for row in rows] == [row[:4] for row in plain]
    assert rows[1] == plain[1]
    assert all(row[4] != other[4] for row, other in zip(rows[2:], plain[2:], strict=True))
    last = load_file(averaged.directory / "weights" / "last.safetensors")
    with TrainSession(digits_artifact, threads=1) as session:
        session.load_checkpoint(averaged.directory / "checkpoints" / "last")
        for name, value in session.averages.items():
            np.testing.assert_array_equal(last[name], value)
        parameters = load_file(whole.directory / "weights" / "last.safetensors")
        for name, value in session.parameters.items():
            np.testing.assert_array_equal(parameters[name], value)
        session.set_parameters(load_file(averaged.directory / "weights" / "best.safetensors"))
        assert session.evaluate(pictures(30, 1)).loss == pytest.approx(averaged.after["loss"], rel=1e-6)
        session.export_model(averaged.directory / "again.onnx")
    assert (averaged.directory / "again.onnx").read_bytes() == (averaged.directory / "model.onnx").read_bytes()


@pytest.mark.parametrize("update", [1, 4, 10, 13])
def test_a_resumed_run_goes_on_with_its_averages(averaged, digits_artifact, tmp_path, update):
    data, val, directory = pictures(75, 0), pictures(30, 1), tmp_path / "stopped"
    stopped = run(digits_artifact, data, AVERAGED, val=val, run_dir=directory, progress=StopAfter(update))
    assert stopped.end == "interrupted"
    assert run(digits_artifact, data, val=val, run_dir=directory, resume=True).end == "complete"
    names = [
        "results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx",
        *(f"checkpoints/last/{n}.safetensors" for n in ("parameters", "state", "averages")),
    ]  # fmt: skip
    for name in names:
        assert (directory / name).read_bytes() == (averaged.directory / name).read_bytes(), name


def test_averages_that_the_artifact_cannot_keep_are_an_error_before_the_first_step(digits_artifact, tmp_path):
    old = shutil.copytree(digits_artifact, tmp_path / "old")
    values = json.loads((old / "manifest.json").read_text())
    del values["graphs"]["average"]
    (old / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"ema is 0\.9, but the artifact 'digits' has no graph for averages"):
        run(old, pictures(16, 0), AVERAGED, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_factors_and_decays_of_groups_are_rates(digits_artifact, tmp_path):
    data, options = pictures(24, 0), {"epochs": 1, "threads": 1, "seed": 3}
    by_group = {"lr": 4e-3, "lr_factors": {"default": 0.25}, "weight_decays": {"default": 0.5}}
    grouped = run(digits_artifact, data, {**options, **by_group}, run_dir=tmp_path / "grouped")
    plain = run(digits_artifact, data, {**options, "lr": 1e-3, "weight_decay": 0.5}, run_dir=tmp_path / "plain")
    for name in ("weights/last.safetensors", "model.onnx"):
        assert (grouped.directory / name).read_bytes() == (plain.directory / name).read_bytes()
