"""GPU memory of this process, and the GPUs of this machine, as NVIDIA's driver tells them."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from typing import Any


def gpu_bytes() -> int | None:
    """GPU memory that this process holds now, on all devices; None where no driver tells."""
    nvml = _nvml()
    if nvml is None:
        rows = _smi("compute-apps", "pid,used_memory")
        found = [int(used) * 2**20 for pid, used in rows if pid == str(os.getpid()) and used.isdecimal()]
    else:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        processes = [p for handle in handles for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        found = [p.usedGpuMemory for p in processes if p.pid == os.getpid() and p.usedGpuMemory is not None]
    return sum(found) if found else None


def gpus() -> tuple[str, ...]:
    """`NAME, MEMORY, driver VERSION` of every GPU of NVIDIA."""
    rows = _smi("gpu", "name,memory.total,driver_version")
    return tuple(f"{name}, {int(memory):,} MiB, driver {driver}" for name, memory, driver in rows if memory.isdecimal())


def _nvml() -> Any:
    """The module of the package nvidia-ml-py, ready to be asked; None without it or without a driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _smi(what: str, columns: str) -> list[list[str]]:
    """Cells of what `nvidia-smi --query-...` prints; none where it is not there or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-{what}={columns}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = columns.count(",") + 1
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == count] if done.returncode == 0 else []
