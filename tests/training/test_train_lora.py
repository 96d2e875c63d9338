"""Runs with LoRA: what they write, how they begin from an adapter, and that they resume bit for bit."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from models import adaptable
from onnx_models import random
from safetensors.numpy import load_file
from training_fake_session import StopAfter

import onnxft
from onnxft.errors import ArtifactError, ConfigError
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.loop import run
from onnxft.yaml_file import read_yaml

OPTIONS = {"epochs": 3, "lr": 3e-2, "threads": 1, "schedule": "cosine", "warmup": 0.1, "seed": 3, "ema": 0.5}


def rows(count, seed):
    """The brightest of five columns says the class."""
    labels = np.arange(count) % 5
    image = random(count, 3, 9, 8, seed=seed)
    image[np.arange(count), :, :, labels] += 1
    return {"image": image, "labels": labels}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Adapters of the last two blocks, with dropout, behind a frozen part that is cut off."""
    net, example = adaptable()
    return onnxft.export(
        net, example, tmp_path_factory.mktemp("artifacts") / "adapted", method="lora:3,head",
        lora_targets=["layers.[12].*"], lora_dropout=0.2, batch_size=6, input_names=["image"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(artifact, tmp_path_factory):
    return run(artifact, rows(40, 0), OPTIONS, val=rows(15, 1), run_dir=tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_writes_the_adapter_of_its_best_weights(artifact, whole):
    names = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/adapter.onnx_adapter"}
    assert names < set(whole.files)
    image = rows(15, 1)["image"]
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(whole.directory / "adapter" / "adapter.onnx_adapter"))
    options.add_active_adapter(adapter)
    (adapted,) = ort.InferenceSession(artifact / "infer_adapter.onnx").run(None, {"image": image}, options)
    (merged,) = ort.InferenceSession(whole.directory / "model.onnx").run(None, {"image": image})
    assert np.abs(adapted - merged).max() < 1e-5
    best = load_file(whole.directory / "weights" / "best.safetensors")
    with TrainSession(artifact, threads=1) as session:
        (before,) = session.predict({"image": image}).values()
        session.set_parameters(best)
        (own,) = session.predict({"image": image}).values()
    assert np.abs(own - merged).max() < 1e-5
    assert np.abs(before - merged).max() > 1e-2


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_an_interrupted_and_resumed_run_is_bit_identical(artifact, whole, tmp_path, cache):
    options, directory = {**OPTIONS, "cache": cache}, tmp_path / "run"
    stopped = run(artifact, rows(40, 0), options, val=rows(15, 1), run_dir=directory, progress=StopAfter(10))
    assert stopped.end == "interrupted"
    assert not (directory / "adapter").exists()
    resumed = run(artifact, rows(40, 0), options, val=rows(15, 1), run_dir=directory, resume=True)
    assert resumed.end == "complete"
    for name in ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx"):
        assert (directory / name).read_bytes() == (whole.directory / name).read_bytes(), name
    tensors, expected = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (directory, whole.directory))
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)


@pytest.mark.parametrize("file", ["adapter", "adapter/adapter.onnx_adapter"])
def test_a_run_begins_with_an_adapter(artifact, whole, tmp_path, file):
    source = str(whole.directory / file)
    options = {**OPTIONS, "epochs": 1, "adapter": source}
    second = run(artifact, rows(40, 0), options, val=rows(15, 1), run_dir=tmp_path / "second")
    assert second.before == whole.after
    assert read_yaml(tmp_path / "second" / "config.yaml")["adapter"] == source
    assert f"from the weights {source}: 10 of 10 values" in (tmp_path / "second" / "train.log").read_text()


def test_an_adapter_that_does_not_fit_leaves_no_run(artifact, whole, tmp_path):
    net, example = adaptable()
    other = onnxft.export(net, example, tmp_path / "other", method="lora:2,head", input_names=["image"])
    options = {**OPTIONS, "adapter": str(whole.directory / "adapter")}
    with pytest.raises(ArtifactError, match=r"has r 3, and 'other' was exported with 2"):
        run(other, rows(40, 0), options, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_and_an_adapter_exclude_each_other():
    with pytest.raises(ConfigError, match="weights 'a' and adapter 'b' both say what to begin with"):
        TrainConfig(weights="a", adapter="b")
