"""Parameter groups: which pattern holds, and updates with rates and decays of their own against torch's groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_optimizers import INF, WEIGHT_SUM, Updates, _torch_optimizer, normal

from onnxft.errors import ConfigError, SelectionError
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import ParameterGroup
from onnxft.step.optimizers import describe_optimizer
from onnxft.step.select import select

EMPTY = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=IR_VERSION)
SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.scale": ()}
TENSORS = tuple(Tensor(name, shape, "float32", "parameter") for name, shape in SHAPES.items())
FORWARD = Forward(
    "net", EMPTY, EMPTY, (*TENSORS, Tensor("c.weight", (2, 7), "float32", "parameter", ("d.weight",))), (), ()
)
FROZEN = Forward(
    "net", EMPTY, EMPTY, (*FORWARD.tensors, Tensor("e", (4,), "float32", "parameter", frozen="there")), (), ()
)

NO_DECAY = ParameterGroup("no_decay", 1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "groups", "described"),
    [
        ({}, "default default default default", ()),
        ({"no_decay_norms": True}, "default no_decay no_decay default", (NO_DECAY,)),
        ({"lr_factors": {"a.*": 0.1}}, "lr_0.1 lr_0.1 default default", (ParameterGroup("lr_0.1", 0.1),)),
        (
            {"lr_factors": {"*": 0.1, "a.*": 10, "a.bias": 1}}, "lr_10 default lr_0.1 lr_0.1",  # the last one holds
            (ParameterGroup("lr_10", 10.0), ParameterGroup("lr_0.1", 0.1)),
        ),
        ({"lr_factors": {"a.*": 10, "*": 0.1}}, "lr_0.1 lr_0.1 lr_0.1 lr_0.1", (ParameterGroup("lr_0.1", 0.1),)),
        ({"lr_factors": {"d.*": 0.5}}, "default default default lr_0.5", (ParameterGroup("lr_0.5", 0.5),)),  # tied
        (
            {"weight_decays": {"b.*": 0.05}, "no_decay_norms": True}, "default no_decay decay_0.05 default",
            (NO_DECAY, ParameterGroup("decay_0.05", 1.0, 0.05)),
        ),
        (
            {"lr_factors": {"a.*": 2}, "weight_decays": {"*.weight": 0.1, "a.bias": 0}},
            "lr_2_decay_0.1 lr_2_no_decay default decay_0.1",
            (
                ParameterGroup("lr_2_decay_0.1", 2.0, 0.1), ParameterGroup("lr_2_no_decay", 2.0, 0.0),
                ParameterGroup("decay_0.1", 1.0, 0.1),
            ),
        ),
    ],
)  # fmt: skip
def test_groups_by_pattern(options: dict[str, Any], groups: str, described: tuple[ParameterGroup, ...]) -> None:
    selection = select(FORWARD, **options)
    assert " ".join(selection.groups.values()) == groups
    assert selection.parameter_groups == described


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"lr_factors": {"a.wieght": 0.1}},
            SelectionError,
            "'a.wieght' matches no trained parameter of 'net'. Did you",
        ),
        ({"weight_decays": {"e": 0.1}}, SelectionError, "'e' matches no trained parameter"),
        ({"lr_factors": {"a.*": 0}}, ConfigError, "the lr factor of 'a.*' is 0; it must be finite and above 0. Freeze"),
        ({"lr_factors": {"a.*": INF}}, ConfigError, "the lr factor of 'a.*' is inf"),
        ({"lr_factors": {"a.*": float("nan")}}, ConfigError, "the lr factor of 'a.*' is nan"),
        ({"weight_decays": {"a.*": -0.1}}, ConfigError, "the weight decay of 'a.*' is -0.1"),
    ],
)
def test_a_bad_pattern_is_an_error(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as err:
        select(FROZEN, **options)
    assert words in str(err.value)


LRS = {"default": 0.05, "lr_0.1": 0.005, "lr_0.1_no_decay": 0.005, "no_decay": 0.05}
DECAYS = {"default": 0.2, "lr_0.1": 0.2, "lr_0.1_no_decay": 0.0, "no_decay": 0.0}


class GroupUpdates(Updates):
    """With the rate and decay of each group, halved at every second step."""

    def step_groups(self, sums: dict[str, np.ndarray], factor: float) -> None:
        rates = {f"lr.{g}": x * factor for g, x in LRS.items()}
        self.advance(sums, rates | {f"weight_decay.{g}": x for g, x in DECAYS.items()})


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "lion"])
def test_8_steps_equal_torchs_groups(kind: str) -> None:
    tensors = tuple(Tensor(name, shape, "float64", "parameter") for name, shape in SHAPES.items())
    forward = Forward("m", EMPTY, EMPTY, tensors, (), ())
    selection = select(forward, lr_factors={"a.*": 0.1}, no_decay_norms=True)
    assert selection.groups == {"a.weight": "lr_0.1", "a.bias": "lr_0.1_no_decay", "b.scale": "no_decay"}
    rng = np.random.default_rng(3)
    values = normal(rng, "float64")
    optimizer = describe_optimizer(kind, {"momentum": 0.9} if kind == "sgd" else None)
    updates = GroupUpdates(forward, selection, optimizer, values)
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    reference = [_torch_optimizer(kind, [p], optimizer) for p in parameters.values()]
    for made, name in zip(reference, parameters, strict=True):
        made.param_groups[0]["decay" if kind == "lion" else "weight_decay"] = DECAYS[selection.groups[name]]
    for step in range(8):
        factor = 0.5 if step % 2 else 1.0
        sums = {name: WEIGHT_SUM * value for name, value in normal(rng, "float64").items()}
        for made, (name, p) in zip(reference, parameters.items(), strict=True):
            made.param_groups[0]["lr"] = LRS[selection.groups[name]] * factor
            p.grad = torch.tensor(sums[name]) / WEIGHT_SUM
            made.step()
        updates.step_groups(sums, factor)
    for name, p in parameters.items():
        np.testing.assert_allclose(updates.values[name], p.detach().numpy(), rtol=1e-11, err_msg=name)
