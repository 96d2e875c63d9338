from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxft.benchmark import gpu_memory
from onnxft.benchmark.environment import describe_device, package_versions, thread_variables


def test_the_machine_is_described_with_what_changes_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMP_BLOCKTIME", "1")
    monkeypatch.setenv("HOME_OF_SECRETS", "x")
    device = describe_device(3)
    assert device.threads == 3
    assert device.logical_cpus >= 1
    assert device.memory_bytes is None or device.memory_bytes > 10**8
    assert device.variables["KMP_BLOCKTIME"] == "1"
    assert "HOME_OF_SECRETS" not in device.variables


def test_versions_are_of_packages_that_this_process_uses() -> None:
    versions = package_versions()
    assert versions["numpy"] == sys.modules["numpy"].__version__
    assert "click" not in versions


def test_threads_are_the_same_in_every_pool() -> None:
    assert set(thread_variables(3).values()) == {"3"}


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` that tells of two GPUs, on both of which this process has memory."""
    script = f"""#!/bin/sh
case "$1" in
--query-compute-apps=pid,used_memory) printf '%s\\n' '1, 900' '{os.getpid()}, 100' '{os.getpid()}, 20' '7, [N/A]';;
--query-gpu=name,memory.total,driver_version) printf '%s\\n' 'NVIDIA H100, 81559, 570.1' 'NVIDIA T4, 15360, 570.1';;
esac
"""
    (tmp_path / "nvidia-smi").write_text(script)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script of sh")
@pytest.mark.usefixtures("smi")
def test_nvidia_smi_tells_memory_and_names() -> None:
    assert gpu_memory.gpu_bytes() == 120 * 2**20
    assert gpu_memory.gpus() == ("NVIDIA H100, 81,559 MiB, driver 570.1", "NVIDIA T4, 15,360 MiB, driver 570.1")


def test_nvml_is_asked_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=5)
    fake = SimpleNamespace(
        NVMLError=ValueError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetComputeRunningProcesses=lambda i: [process, SimpleNamespace(pid=1, usedGpuMemory=None)],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert gpu_memory.gpu_bytes() == 10


def test_without_a_gpu_there_is_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory.gpu_bytes() is None
    assert gpu_memory.gpus() == ()
