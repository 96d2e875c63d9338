"""Rates of an update: what a number, a mapping and nothing at all mean for each parameter group."""

from __future__ import annotations

from typing import Any

import pytest

from onnxft.errors import ConfigError
from onnxft.manifest import GraphFile, Loss, Manifest, Optimizer, Parameter, ParameterGroup
from onnxft.runtime.rates import check_rates

MANIFEST = Manifest(
    name="net",
    generator="native",
    batch_size=2,
    graphs={"train": GraphFile("train.onnx")},
    parameters=(
        Parameter("w", (2,), "float32"),
        Parameter("b", (2,), "float32", "no_decay"),
        Parameter("s", (2,), "float32", "lr_0.1"),
    ),
    parameter_groups=(ParameterGroup("no_decay", 1.0, 0.0), ParameterGroup("lr_0.1", 0.1)),
    loss=Loss("mse", "y"),
    optimizer=Optimizer("adamw", {}, 0.01),
    frozen_parameters=0,
    files={"train.onnx": ""},
)


@pytest.mark.parametrize(
    ("lr", "decay", "lrs", "decays"),
    [
        (0.5, None, (0.5, 0.5, 0.05), (0.01, 0.0, 0.01)),
        (0.5, 0.3, (0.5, 0.5, 0.05), (0.3, 0.0, 0.3)),
        (
            {"default": 1.0, "no_decay": 2.0, "lr_0.1": 3.0}, {"default": 0.1, "no_decay": 0.2, "lr_0.1": 0.3},
            (1.0, 2.0, 3.0), (0.1, 0.2, 0.3),
        ),
    ],
)  # fmt: skip
def test_rates_of_groups(lr: Any, decay: Any, lrs: tuple[float, ...], decays: tuple[float, ...]) -> None:
    hyper = check_rates(MANIFEST, 1, lr, decay)
    assert tuple(hyper.lr.values()) == pytest.approx(lrs)
    assert tuple(hyper.weight_decay.values()) == decays
    assert tuple(hyper.lr) == MANIFEST.groups


@pytest.mark.parametrize(
    ("lr", "decay", "words"),
    [
        ({"default": 1.0}, None, "lr must name each parameter group once (default, no_decay, lr_0.1), not default"),
        (1.0, {"default": 1.0, "no_decay": 0.0}, "weight_decay must name each parameter group once"),
        (-1.0, None, "lr of group 'default' is -1.0"),
        (1.0, float("nan"), "weight_decay of group 'default' is nan"),
    ],
)
def test_bad_rates(lr: Any, decay: Any, words: str) -> None:
    with pytest.raises(ConfigError) as err:
        check_rates(MANIFEST, 1, lr, decay)
    assert words in str(err.value)
