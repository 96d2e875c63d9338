"""The machine and the packages, as far as they change what a benchmark measures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from onnxft.benchmark.gpu_memory import gpus
from onnxft.benchmark.report import Device
from onnxft.memory import physical_memory
from onnxft.runtime.installation import processor

VARIABLES = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ORT_", "OV_", "OPENVINO_", "TORCH", "PYTORCH_",
    "CUDA_", "CUDNN_", "NVIDIA_", "TF32", "MALLOC_", "LD_PRELOAD",
)  # fmt: skip
"""Beginnings of the names of environment variables that change speed."""
LOADED = ("onnx", "openvino", "peft", "torch", "triton", "numpy", "transformers")
"""Beginnings of the names of packages that belong to a result where a side imported them."""
LINKED = ("tensorrt", "nvidia-cudnn", "nvidia-cublas", "nvidia-cuda-runtime")
"""Likewise, of packages whose libraries are loaded without an import."""


def available_threads() -> int:
    """Logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(threads: int) -> Device:
    """This machine."""
    return Device(
        platform.platform(),
        processor(),
        os.cpu_count() or 1,
        threads,
        memory_bytes=physical_memory(),
        python=platform.python_version(),
        gpus=gpus(),
        variables={name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    )


def thread_variables(threads: int) -> dict[str, str]:
    """What holds the thread pools of a side's libraries to the same number, whatever the surroundings say."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


def package_versions() -> dict[str, str]:
    """{package: version} of those that this process uses and a result depends on."""
    imported = {name.partition(".")[0] for name in sys.modules}
    distributions = importlib.metadata.packages_distributions()
    names = {d for module in imported for d in distributions.get(module, ()) if d.lower().startswith(LOADED)}
    names |= {d for found in distributions.values() for d in found if d.lower().startswith(LINKED)}
    return {name: importlib.metadata.version(name) for name in sorted(names)}
