"""The rates of one update: checked, and completed for every parameter group."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.runtime.engine import Hyper

Rate = float | Mapping[str, float]
"""One number for all parameter groups, or {group: number} for each."""


def check_rates(
    manifest: Manifest,
    step: int,
    lr: Rate,
    weight_decay: Rate | None = None,
    max_norm: float = math.inf,
    max_value: float = math.inf,
) -> Hyper:
    """What update number `step` (from 1) takes besides gradients.

    One `lr` for all groups is multiplied by each group's factor. A `weight_decay` of None is each group's own, else
    the artifact's; one number holds for the groups that have none of their own. A mapping is taken as it is.
    A `max_norm` or `max_value` of infinity is off.

    Raises:
        ConfigError: a number is out of range, or the groups are not those of the artifact.
    """
    rates, decays = by_group(manifest, lr, weight_decay)
    for name, value in (("max_norm", max_norm), ("max_value", max_value)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}; it must be positive (infinity switches it off).")
    groups = manifest.groups
    return Hyper(_checked("lr", rates, groups), _checked("weight_decay", decays, groups), step, max_norm, max_value)


def by_group(manifest: Manifest, lr: Rate, weight_decay: Rate | None) -> tuple[dict[str, float], dict[str, float]]:
    """Learning rates and decays of every parameter group; see `check_rates`."""
    own = [manifest.parameter_group(name) for name in manifest.groups]
    rates = dict(lr) if isinstance(lr, Mapping) else {g.name: lr * g.lr_factor for g in own}
    if isinstance(weight_decay, Mapping):
        return rates, dict(weight_decay)
    default = manifest.optimizer.weight_decay if weight_decay is None else weight_decay
    return rates, {g.name: default if g.weight_decay is None else g.weight_decay for g in own}


def _checked(name: str, values: dict[str, float], groups: tuple[str, ...]) -> dict[str, float]:
    if set(values) != set(groups):
        raise ConfigError(f"{name} must name each parameter group once ({', '.join(groups)}), not {', '.join(values)}.")
    for group, number in values.items():
        if not (math.isfinite(number) and number >= 0):
            raise ConfigError(f"{name} of group '{group}' is {number}; it must be finite and not negative.")
    return values
