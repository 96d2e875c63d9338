"""The optimizers, with torch's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from onnxft.errors import ConfigError, near
from onnxft.manifest import Optimizer, OptimizerKind
from onnxft.step.updates import Update, adam, adamw, lion, sgd

_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_OPTIMIZERS: dict[str, tuple[Callable[..., Update], dict[str, float], float]] = {
    # name: (builder, its options with torch's defaults (Lion: its authors'), the default weight decay likewise)
    "adam": (adam, _ADAM, 0.0),
    "adamw": (adamw, _ADAM, 0.01),
    "lion": (lion, {"beta1": 0.9, "beta2": 0.99}, 0.0),
    "sgd": (sgd, {"momentum": 0.0, "nesterov": 0.0}, 0.0),
}
_SWITCHES = ("nesterov",)
_CLIPPED = ("adamw", "sgd")
"""Optimizers with the option `max_norm`, which has no default: onnxruntime-training's optimizer graph clips by it."""


def describe_optimizer(
    kind: str, options: Mapping[str, float] | None = None, weight_decay: float | None = None
) -> Optimizer:
    """The manifest's record of an optimizer, options completed with torch's defaults.

    Raises:
        ConfigError: the optimizer or an option is unknown, or a value is out of range.
    """
    if kind not in _OPTIMIZERS:
        raise ConfigError(f"unknown optimizer '{kind}'.{near(kind, _OPTIMIZERS)}")
    _, defaults, decay = _OPTIMIZERS[kind]
    for name, value in (options or {}).items():
        if name == "max_norm" and kind in _CLIPPED:
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"option 'max_norm' of optimizer '{kind}' is {value}; it must be finite and above 0.")
            continue
        if name not in defaults:
            raise ConfigError(f"optimizer '{kind}' has no option '{name}'.{near(name, defaults)}")
        if name in _SWITCHES and value not in (0, 1):
            raise ConfigError(f"option '{name}' of optimizer '{kind}' is {value}; it must be 0 or 1.")
        if name not in _SWITCHES and not 0.0 <= value < 1.0:
            raise ConfigError(f"option '{name}' of optimizer '{kind}' is {value}; it must be at least 0 and below 1.")
    decay = decay if weight_decay is None else weight_decay
    if not 0.0 <= decay < float("inf"):
        raise ConfigError(f"weight_decay is {decay}; it must be finite and not negative.")
    full = {k: float(v) for k, v in {**defaults, **(options or {})}.items()}
    if full.get("nesterov") and not full["momentum"]:
        raise ConfigError("option 'nesterov' of optimizer 'sgd' needs a 'momentum' above 0.")
    return Optimizer(cast(OptimizerKind, kind), full, decay)


def update_of(optimizer: Optimizer) -> Update:
    """What an optimizer makes of a parameter."""
    return _OPTIMIZERS[optimizer.kind][0](**optimizer.options)
