"""Optimizers as chains of transforms, with torch's defaults and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxft.errors import ConfigError, near
from onnxft.manifest import Optimizer
from onnxft.step.transforms import Transform, add_decayed_weights, chain, scale_by_adam, scale_by_lr, trace


def adamw(beta1: float, beta2: float, eps: float) -> Transform:
    """p ← p - η (adam(g) + λp)   (Loshchilov and Hutter 2019; torch.optim.AdamW)"""
    return chain(scale_by_adam(beta1, beta2, eps), add_decayed_weights(), scale_by_lr())


def sgd(momentum: float) -> Transform:
    """p ← p - η b,  b ← μb + g + λp   (torch.optim.SGD)"""
    links = (
        (add_decayed_weights(), trace(momentum), scale_by_lr()) if momentum else (add_decayed_weights(), scale_by_lr())
    )
    return chain(*links)


_OPTIMIZERS: dict[str, tuple[Callable[..., Transform], dict[str, float], float]] = {
    # name: (builder, its options with torch's defaults, torch's default weight decay)
    "adamw": (adamw, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.01),
    "sgd": (sgd, {"momentum": 0.0}, 0.0),
}


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
        if name not in defaults:
            raise ConfigError(f"optimizer '{kind}' has no option '{name}'.{near(name, defaults)}")
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"option '{name}' of optimizer '{kind}' is {value}; it must be at least 0 and below 1.")
    decay = decay if weight_decay is None else weight_decay
    if not 0.0 <= decay < float("inf"):
        raise ConfigError(f"weight_decay is {decay}; it must be finite and not negative.")
    full = {**defaults, **(options or {})}
    return Optimizer("adamw" if kind == "adamw" else "sgd", {k: float(v) for k, v in full.items()}, decay)


def optimizer_transform(optimizer: Optimizer) -> Transform:
    """The chain of an optimizer."""
    return _OPTIMIZERS[optimizer.kind][0](**optimizer.options)
