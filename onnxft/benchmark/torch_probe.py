"""What torch reaches at most, and the time of its operators, in the process of a torch baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxft.benchmark.exchange import OperatorTime, Peaks
from onnxft.benchmark.peaks import CHAIN, COPY_BYTES, copy_bandwidth, peak_flops, shortest

PROFILED_STEPS = 3
CPU = torch.device("cpu")


def torch_peaks(threads: int, precision: str = "float32", device: torch.device = CPU) -> Peaks:
    """Of torch.matmul in a precision, with the threads that torch was given; and of a copy in the device's memory, on
    the CPU by `threads` threads.
    """

    def prepare(n: int) -> Callable[[], object]:
        x = w = torch.full((n, n), 1 / n, dtype=getattr(torch, precision), device=device)

        def run() -> None:
            y = x
            for _ in range(CHAIN):
                y = torch.matmul(y, w)
            _wait(device)

        return run

    def copy() -> None:
        target.copy_(source)
        _wait(device)

    with torch.no_grad():
        flops = peak_flops(prepare)
        if device.type == "cpu":
            return Peaks(flops, copy_bandwidth(threads))
        source = torch.ones(COPY_BYTES // 4, device=device)
        target = torch.empty_like(source)
        return Peaks(flops, 2 * COPY_BYTES / shortest(copy))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def torch_operators(step: Callable[[], object]) -> tuple[OperatorTime, ...]:
    """Time by operator of a step, without what it spends in others that it calls; the longest first."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(PROFILED_STEPS):
            step()
    times = (
        OperatorTime(
            event.key, "torch", round(event.count / PROFILED_STEPS), event.self_cpu_time_total / 1e6 / PROFILED_STEPS
        )
        for event in profile.key_averages()
    )
    return tuple(sorted(times, key=lambda time: -time.seconds))
