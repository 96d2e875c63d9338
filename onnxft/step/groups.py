"""Parameter groups: learning-rate factors and decays by globs over names."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

from onnxft.errors import ConfigError, SelectionError, near
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import DEFAULT_GROUP, ParameterGroup


def check_factors(lr_factors: Mapping[str, float], weight_decays: Mapping[str, float]) -> None:
    """ConfigError for a number that is out of range, before the model is known."""
    for pattern, factor in lr_factors.items():
        if not 0 < factor < math.inf:
            freeze = f" Freeze the parameters instead: --freeze '{pattern}'." if factor == 0 else ""
            raise ConfigError(f"the lr factor of '{pattern}' is {factor}; it must be finite and above 0.{freeze}")
    for pattern, decay in weight_decays.items():
        if not 0 <= decay < math.inf:
            raise ConfigError(f"the weight decay of '{pattern}' is {decay}; it must be finite and not negative.")


def group_parameters(
    forward: Forward,
    trainable: Sequence[str],
    lr_factors: Mapping[str, float],
    weight_decays: Mapping[str, float],
    no_decay_norms: bool = False,
) -> tuple[dict[str, str], tuple[ParameterGroup, ...]]:
    """{trained parameter: its group}, and the groups, one for each pair of factor and decay that occurs, but for
    that of the parameters that have none of their own.

    Of several patterns that match a parameter the last one holds. `no_decay_norms` gives the decay 0 to
    parameters of at most one dimension (biases, scales of normalisation) that no pattern of `weight_decays` matches.

    Raises:
        ConfigError: a number is out of range.
        SelectionError: a pattern matches no trained parameter.
    """
    check_factors(lr_factors, weight_decays)
    tensors = {t.name: t for t in forward.tensors if t.name in set(trainable)}
    for pattern in (*lr_factors, *weight_decays):
        if not any(_matches(t, pattern) for t in tensors.values()):
            names = [name for t in tensors.values() for name in (t.name, *t.tied_to)]
            hint = near(pattern.rstrip("*?."), names) or " `onnxft export --dry-run` lists them."
            raise SelectionError(f"the pattern '{pattern}' matches no trained parameter of '{forward.name}'.{hint}")
    groups, chosen = {}, {}
    for name in trainable:
        tensor = tensors[name]
        none = 0.0 if no_decay_norms and len(tensor.shape) <= 1 else None
        group = _group(_last(tensor, lr_factors, 1.0), _last(tensor, weight_decays, none))
        groups[name] = group.name
        chosen[group.name] = group
    return groups, tuple(g for g in chosen.values() if g.name != DEFAULT_GROUP)


def _last(tensor: Tensor, patterns: Mapping[str, float], default: float | None) -> float | None:
    matching = [x for pattern, x in patterns.items() if _matches(tensor, pattern)]
    return matching[-1] if matching else default


def _group(factor: float | None, decay: float | None) -> ParameterGroup:
    """The group of a factor and a decay: `default`, `lr_0.1`, `no_decay`, `lr_0.1_decay_0.05`, ..."""
    factor = 1.0 if factor is None else float(factor)
    parts = [f"lr_{factor!r}".removesuffix(".0")] if factor != 1 else []
    if decay is not None:
        parts.append(f"decay_{float(decay)!r}" if decay else "no_decay")
    return ParameterGroup("_".join(parts) or DEFAULT_GROUP, factor, None if decay is None else float(decay))


def _matches(tensor: Tensor, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (tensor.name, *tensor.tied_to))
