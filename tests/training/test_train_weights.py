"""A new run from the weights of another."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from training_fake_session import FakeSession, StopAfter, make_manifest

from onnxft.errors import ArtifactError, ConfigError
from onnxft.yaml_file import read_yaml

FAST = {"lr": 0.1, "epochs": 2}


def test_it_begins_with_the_best_weights_and_a_fresh_optimizer(run_loop):
    first = run_loop("first", lr=40.0, epochs=4, metric="loss")
    assert first.best_epoch != 4
    second = run_loop("second", **FAST, weights=str(first.directory))
    assert second.before == first.after
    session = FakeSession(make_manifest())
    session.set_parameters(load_file(first.directory / "weights" / "best.safetensors"))
    third = run_loop("third", **FAST, session=session)
    assert (third.directory / "model.onnx").read_bytes() == (second.directory / "model.onnx").read_bytes()


def test_it_is_recorded(run_loop):
    first = run_loop("first", **FAST)
    file = first.directory / "weights" / "last.safetensors"
    second = run_loop("second", **FAST, weights=str(file))
    assert read_yaml(second.directory / "config.yaml")["weights"] == str(file)
    position = json.loads((second.directory / "checkpoints" / "last" / "loop.json").read_text())
    assert position["origin"]["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"from the weights {file}: 1 of 1 values" in (second.directory / "train.log").read_text()


def test_a_resumed_run_needs_them_no_more_and_takes_no_others(run_loop):
    first = run_loop("first", **FAST)
    file = first.directory / "weights" / "best.safetensors"
    options = {**FAST, "lr": 0.2, "weights": str(file)}
    whole = run_loop("whole", **options)
    stopped = run_loop("stopped", **options, progress=StopAfter(5))
    file.unlink()
    with pytest.raises(ConfigError, match=r"weights .*best\.safetensors.*--resume cannot go on"):
        run_loop("stopped", **{**options, "weights": None}, resume=True)
    resumed = run_loop("stopped", **options, resume=True)
    for name in ("results.csv", "weights/last.safetensors"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    assert resumed.directory == stopped.directory


def write(path, **values):
    save_file(values, path)


WEIGHT = np.zeros((4, 3))
UNFIT = {
    "not trained": (lambda p: write(p, bias=WEIGHT, weight=WEIGHT), ["'bias'", "not trained in 'linear'"]),
    "another shape": (lambda p: write(p, weight=WEIGHT.T.copy()), ["'weight'", "[3, 4]", "[4, 3]"]),
    "another type": (lambda p: write(p, weight=WEIGHT.astype(np.float16)), ["'weight'", "float16", "float64"]),
    "nothing": (lambda p: write(p), ["hold no value"]),
    "damaged": (lambda p: p.write_bytes(b"\x10"), ["cannot be read as .safetensors"]),
    "missing": (lambda p: None, ["there are no weights"]),
    "a directory without": (lambda p: p.mkdir(), ["there are no weights", "best.safetensors"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(run_loop, case):
    make, words = UNFIT[case]
    make(run_loop.root / "w.safetensors")
    with pytest.raises(ArtifactError) as error:
        run_loop(**FAST, weights=str(run_loop.root / "w.safetensors"))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (run_loop.root / "run").exists()
    assert run_loop.session.updates == []


def test_a_part_of_what_is_trained_is_enough(digits_artifact, tmp_path):
    from onnxft.runtime.session import TrainSession
    from onnxft.training.warm_start import require_fit

    with TrainSession(digits_artifact, threads=1) as session:
        name, value = next(iter(session.parameters.items()))
        number = len(session.parameters)
        said = require_fit(session, {name: value}, "w.safetensors")
    assert said == f"w.safetensors: 1 of {number} values; the other {number - 1} begin as in the artifact"
