"""`auto`: the fastest provider that works here, found by a few training steps on each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from onnxft.errors import OnnxftError, ProviderError
from onnxft.runtime.execution import Execution
from onnxft.runtime.providers import AUTO, PROVIDERS, Provider, is_builtin, plugin_devices

_STEPS = 5
"""Measured steps of each provider, after one that warms up."""


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for, and why."""

    asked: Execution
    """The request with the provider that was chosen."""
    reason: str
    """What each provider took, or why it does not work."""


def choose(asked: Execution, step_seconds: Callable[[str], float]) -> Choice:
    """Try every provider that the installed runtime offers and take the one with the shortest training step.

    Args:
        asked: a request for `auto`; everything but the provider holds for the one chosen.
        step_seconds: opens what was asked for on the provider of this name, and times its step.

    Raises:
        ProviderError: none works; names the reason of each.
    """
    candidates = [entry for entry in PROVIDERS.values() if _offered(entry)]
    if len(candidates) == 1:
        (entry,) = candidates
        return Choice(replace(asked, provider=entry.name), f"{entry.name} is the only one that this runtime offers")
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for entry in candidates:
        try:
            seconds[entry.name] = step_seconds(entry.name)
        except OnnxftError as err:
            failed[entry.name] = str(err)
    if not seconds:
        raise ProviderError(f"'{AUTO}' finds no provider that works: {'; '.join(failed.values())}")
    order = sorted(seconds, key=lambda name: seconds[name])
    times = [f"{name} {1000 * seconds[name]:.3g} ms a step" for name in order]
    reasons = [f"{name} does not work ({reason.rstrip('.')})" for name, reason in failed.items()]
    return Choice(replace(asked, provider=order[0]), "; ".join(times + reasons))


def _offered(entry: Provider) -> bool:
    try:
        return is_builtin(entry) or bool(plugin_devices(entry))
    except ProviderError:  # a plug-in that does not load is nothing that was asked for
        return False


def median_seconds(step: Callable[[], object]) -> float:
    """Median seconds of a step, each until its loss was read."""
    times = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times[1:])
