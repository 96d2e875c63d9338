from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.scenario import measure
from onnxft.errors import DivergedError
from onnxft.memory import peak_resident_bytes


def scripted(
    seconds: float, losses: Callable[[int], float] = lambda i: 7.0 + i
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A step that takes `seconds` of a clock that stands still otherwise."""
    now, count = 0.0, 0

    def step() -> float:
        nonlocal now, count
        now += seconds
        count += 1
        return losses(count)

    return step, lambda: now


@pytest.mark.parametrize(
    ("step_seconds", "config", "expected_steps"),
    [
        (1.0, BenchConfig(min_steps=12, min_seconds=3, warmup_steps=3), 12),
        (0.125, BenchConfig(min_steps=12, min_seconds=3, warmup_steps=3), 24),
        (0.125, BenchConfig(min_steps=12, min_seconds=3, max_steps=15, warmup_steps=0), 15),
        (1.0, BenchConfig(min_steps=5, min_seconds=0, warmup_steps=1), 5),
    ],
)
def test_steps_reach_both_minima_or_the_maximum(step_seconds: float, config: BenchConfig, expected_steps: int) -> None:
    step, clock = scripted(step_seconds)
    times = measure(step, config, clock)
    assert times.steps == (step_seconds,) * expected_steps
    assert times.warmup == (step_seconds,) * config.warmup_steps
    assert times.first_step == step_seconds
    assert times.loss == 8.0  # of the first step, before any update


def test_a_loss_that_is_not_finite_ends_the_measurement_with_its_step() -> None:
    step, clock = scripted(1.0, lambda i: float("nan") if i == 6 else 1.0)
    with pytest.raises(DivergedError, match="step 6 is nan"):
        measure(step, BenchConfig(), clock)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak of resident memory")
def test_peak_memory_is_of_this_process_and_not_of_its_parent() -> None:
    size = 300_000_000
    ballast = bytearray(size)
    child = [sys.executable, "-c", "from onnxft.memory import peak_resident_bytes as peak; print(peak())"]
    of_child = int(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    of_parent = peak_resident_bytes()
    assert of_parent is not None
    assert of_parent > len(ballast)
    assert 5_000_000 < of_child < size
