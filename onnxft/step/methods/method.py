"""What `--method` says: `full`, `head`, `last:K`, `bias`, `norm`, `lora[:RANK]`, several separated by commas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxft.errors import ConfigError, near

PRESETS = ("full", "head", "last", "bias", "norm")
LORA = "lora"
_DEFAULT_RANK = 8


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): y = W x + alpha / rank B A dropout(x)."""

    rank: int
    alpha: float
    dropout: float = 0.0
    """Probability that an element of x is 0 on its way to A, in training."""
    targets: tuple[str, ...] = ()
    """Globs of the weights that get an adapter; (): all linear layers but those of the head."""


@dataclass(frozen=True)
class Method:
    """What is trained, besides what patterns name."""

    presets: tuple[tuple[str, int], ...] = ()
    """(name, number of blocks; 0 where it takes none)"""
    lora: Lora | None = None


def parse_method(
    text: str | None,
    lora_targets: Sequence[str] = (),
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
) -> Method | None:
    """The method that `text` names; None where there is none.

    Args:
        text: such as `last:2`, or `lora:8,head`.
        lora_targets: globs of weights.
        lora_alpha: None: twice the rank.
        lora_dropout: None: 0.

    Raises:
        ConfigError: a method is unknown or named twice, a number is missing or out of range, or options of lora are
            given without it.
    """
    presets: dict[str, int] = {}
    rank = None
    for part in text.split(",") if text is not None else ():
        name, colon, number = part.strip().partition(":")
        if name not in (*PRESETS, LORA):
            raise ConfigError(f"unknown method '{name}'.{near(name, (*PRESETS, LORA))}")
        if name in presets or (name == LORA and rank is not None):
            raise ConfigError(f"method '{text}' names '{name}' twice. Name it once.")
        if colon and name not in ("last", LORA):
            raise ConfigError(f"the method '{name}' takes no number; leave ':{number}' out.")
        if name == LORA:
            rank = _count(part, number) if colon else _DEFAULT_RANK
        else:
            presets[name] = _count(part, number) if name == "last" else 0
    if rank is None:
        given = {"targets": lora_targets, "alpha": lora_alpha, "dropout": lora_dropout}
        for option, value in given.items():
            if value not in (None, (), []):
                raise ConfigError(
                    f"lora_{option} belongs to the method lora, method is {text}: add lora, or leave it out."
                )
        return None if text is None else Method(tuple(presets.items()))
    alpha, dropout = 2.0 * rank if lora_alpha is None else lora_alpha, lora_dropout or 0.0
    if not 0 < alpha < math.inf:
        raise ConfigError(f"lora_alpha is {alpha}; it must be finite and above 0.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"lora_dropout is {dropout}; it must be at least 0 and below 1.")
    return Method(tuple(presets.items()), Lora(rank, alpha, dropout, tuple(lora_targets)))


def _count(part: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        example = "last:2" if part.strip().startswith("last") else "lora:8"
        raise ConfigError(f"the method '{part.strip()}' needs a whole number of at least 1, such as {example}.")
    return int(number)
