from __future__ import annotations

from dataclasses import replace

import pytest

from onnxft.errors import ConfigError
from onnxft.training.config import TrainConfig, resumed
from onnxft.yaml_file import read_yaml

BAD = [
    ({"epochs": 0}, ["epochs is 0", "at least 1"]),
    ({"lr": float("nan")}, ["lr is nan", "above 0"]),
    ({"lr": -1.0}, ["lr is -1.0"]),
    ({"weight_decay": -0.1}, ["weight_decay is -0.1"]),
    ({"warmup": 1.0}, ["warmup is 1.0", "below 1"]),
    ({"accumulate": 0}, ["accumulate is 0"]),
    ({"clip_norm": 0.0}, ["clip_norm is 0.0"]),
    ({"clip_value": float("inf")}, ["clip_value is inf"]),
    ({"seed": -1}, ["seed is -1"]),
    ({"batch_size": 0}, ["batch_size is 0"]),
    ({"threads": 0}, ["threads is 0"]),
    ({"dimensions": {"sequence": 0}}, ["'sequence' is 0", "at least 1"]),
    ({"dimensions": {"sequence": "long"}}, ["dimensions"]),
    ({"patience": 0}, ["patience is 0"]),
    ({"schedule": "cosin"}, ["'cosin'", "Did you mean 'cosine'"]),
    ({"schedule": "step"}, ["needs step_size"]),
    ({"schedule": "step", "step_size": 0}, ["step_size is 0"]),
    ({"schedule": "step", "step_size": 2, "gamma": 0.0}, ["gamma is 0.0"]),
    ({"step_size": 2}, ["step_size", "schedule is constant"]),
    ({"schedule": "cosine", "gamma": 0.5}, ["gamma", "schedule is cosine"]),
    ({"recompute": "offf"}, ["unknown recompute 'offf'", "Did you mean 'off'"]),
    ({"metric": "balanced_acuracy"}, ["Did you mean 'balanced_accuracy'"]),
    ({"epoch": 3}, ["unknown key 'epoch'", "Did you mean 'epochs'"]),
    ({3: 3}, ["unknown key 3"]),
    ({"epochs": "three"}, ["epochs"]),
    ({"lr": [1]}, ["lr"]),
]


@pytest.mark.parametrize(("values", "words"), BAD, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_bad_values_are_named(values, words):
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_mapping(values)
    assert all(word in str(error.value) for word in words)


def test_yaml_there_and_back(tmp_path):
    config = TrainConfig(
        epochs=3, lr=3e-4, schedule="cosine", warmup=0.1, clip_norm=1.0, dimensions={"s": 3}, recompute="off"
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert TrainConfig.from_mapping(read_yaml(path)) == config


def test_yaml_exponent_without_a_point_is_a_number(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("lr: 1e-3\nepochs: 2\n")
    assert TrainConfig.from_mapping(read_yaml(path)) == TrainConfig(lr=1e-3, epochs=2)


@pytest.mark.parametrize(
    ("text", "word"),
    [("- 1\n", "list"), ("a: [", "YAML"), ("!!python/object/apply:os.getcwd []", "YAML"), (None, "there is no")],
    ids=["list", "broken", "python object", "missing"],
)
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text, word):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_yaml(path)


def test_an_empty_yaml_file_sets_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# all defaults\n")
    assert read_yaml(path) == {}


SAVED = TrainConfig(epochs=4, lr=0.01, batch_size=8, recompute="on")


@pytest.mark.parametrize("asked", [{}, {"lr": 0.01}, {"epochs": 9}, {"recompute": "auto"}], ids=str)
def test_a_resumed_run_keeps_its_options(asked):
    assert resumed(SAVED, asked) == replace(SAVED, epochs=asked.get("epochs", 4))


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [
        (SAVED, {"lr": 0.02}, ["lr 0.01", "lr 0.02"]),
        (SAVED, {"batch_size": 4}, ["batch_size 8", "batch_size 4"]),
        (SAVED, {"dimensions": {"sequence": 4}}, ["dimensions {}", "dimensions {'sequence': 4}"]),
        (SAVED, {"recompute": "off"}, ["recompute on", "recompute off"]),
        (SAVED, {"clip_norm": 1.0}, ["clip_norm None", "clip_norm 1.0"]),
        (TrainConfig(epochs=4, schedule="cosine"), {"epochs": 5}, ["epochs 4", "epochs 5", "cosine"]),
        (TrainConfig(epochs=4, warmup=0.5), {"epochs": 5}, ["epochs 4", "epochs 5", "warmup 0.5"]),
    ],
    ids=["lr", "batch_size", "dimensions", "recompute", "from none", "cosine", "warmup"],
)
def test_a_resumed_run_refuses_other_options(saved, asked, words):
    with pytest.raises(ConfigError) as error:
        resumed(saved, asked)
    assert all(word in str(error.value) for word in words)
