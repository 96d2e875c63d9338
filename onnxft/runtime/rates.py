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

    A `weight_decay` of None is the artifact's; a `max_norm` or `max_value` of infinity is off.

    Raises:
        ConfigError: a number is out of range, or the groups are not those of the artifact.
    """
    decay = manifest.optimizer.weight_decay if weight_decay is None else weight_decay
    for name, value in (("max_norm", max_norm), ("max_value", max_value)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}; it must be positive (infinity switches it off).")
    groups = manifest.groups
    return Hyper(_by_group("lr", lr, groups), _by_group("weight_decay", decay, groups), step, max_norm, max_value)


def _by_group(name: str, value: Rate, groups: tuple[str, ...]) -> dict[str, float]:
    values = dict(value) if isinstance(value, Mapping) else dict.fromkeys(groups, value)
    if set(values) != set(groups):
        raise ConfigError(f"{name} must name each parameter group once ({', '.join(groups)}), not {', '.join(values)}.")
    for group, number in values.items():
        if not (math.isfinite(number) and number >= 0):
            raise ConfigError(f"{name} of group '{group}' is {number}; it must be finite and not negative.")
    return values
