"""What onnxruntime-training's optimizers can do, and what its worker bakes into the optimizer model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxft.errors import ConfigError, near
from onnxft.manifest import Optimizer, ParameterGroup
from onnxft.step.select import Selection

_ADAMW_DEFAULTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
"""torch's; onnxblock's eps is 1e-6."""


def optimizer_settings(optimizer: Optimizer, selection: Selection) -> dict[str, Any]:
    """The worker's request for an optimizer; `max_norm` is None where nothing is clipped.

    Raises:
        ConfigError: onnxruntime-training has no such optimizer or option, or parameter groups of their own are asked
            for: it has one rate and one decay for all.
    """
    if any(g != ParameterGroup(g.name) for g in selection.parameter_groups):
        raise ConfigError(
            "onnxruntime-training has one learning rate and one decay for all parameters, so the 'ort-training' "
            "generator takes no lr_factors or weight_decays. Leave them out, or use --generator native."
        )
    options = dict(optimizer.options)
    max_norm = options.pop("max_norm", None)
    if optimizer.kind == "adamw":
        return {"max_norm": max_norm, **_adamw(options, optimizer.weight_decay)}
    if optimizer.kind == "sgd":
        _check_plain({**options, "weight_decay": optimizer.weight_decay})
        return {"max_norm": max_norm, "kind": "sgd"}
    raise ConfigError(
        f"onnxruntime-training has no optimizer '{optimizer.kind}'. Choose adamw or sgd, or the native generator."
    )


def _adamw(options: Mapping[str, float], decay: float) -> dict[str, Any]:
    for name in options:
        if name not in _ADAMW_DEFAULTS:
            raise ConfigError(f"adamw has no option '{name}' here.{near(name, _ADAMW_DEFAULTS)}")
    return {"kind": "adamw", **_ADAMW_DEFAULTS, **options, "weight_decay": decay}


def _check_plain(options: Mapping[str, float]) -> None:
    for name, value in options.items():
        if value != 0:
            raise ConfigError(
                f"sgd has {name} = {value}, but onnxruntime-training's SGD is the plain step p - lr * gradient. "
                f"Set {name} to 0, choose adamw, or use the native generator."
            )
