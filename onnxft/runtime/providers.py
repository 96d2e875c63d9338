"""The table of execution providers: how each is found, what is set, how its buffers are bound.

Adding a provider is one entry of `PROVIDERS`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

from onnxft.errors import ProviderError, near

Binding = Literal["bound", "values"]
"""How state goes from one step to the next.

`bound`: inputs and outputs are bound once to two sets of buffers that change places each step.
`values`: the outputs of a run are handed to the next run as they are. Needed where a provider
copies inputs when they are bound (OpenVINO): its second step would read stale parameters.
"""


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    name: str
    runtime_name: str
    packages: tuple[str, ...]
    """Packages that bring it, the recommended one first."""
    binding: Binding
    options: Callable[[int | None], dict[str, str]]
    """threads -> options for exact float32; the precision is always set, never left to a default."""
    plugin: str | None = None
    """Module of a plug-in package, where there is one (it has get_library_path)."""
    needs: str = ""
    """What must be on the machine besides the package."""

    @property
    def how_to_install(self) -> str:
        """The command that brings the provider, with what else the machine needs."""
        command = " or ".join(f"`pip install {package}`" for package in self.packages)
        return f"{command}{f' ({self.needs})' if self.needs else ''}"


def _no_options(threads: int | None) -> dict[str, str]:
    return {}


def _openvino_options(threads: int | None) -> dict[str, str]:
    # Left alone, OpenVINO computes in bfloat16 on processors that have it.
    config: dict[str, str] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": config})}


PROVIDERS: dict[str, Provider] = {
    p.name: p
    for p in (
        Provider("cpu", "CPUExecutionProvider", ("onnxft[cpu]",), "bound", _no_options),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            ("onnxft[openvino]", "onnxft[openvino-builtin]"),
            "values",
            _openvino_options,
            plugin="onnxruntime_ep_openvino",
            needs="the first serves Intel hardware beside the stock runtime; the second replaces the stock runtime "
            "and serves every x86-64 processor: give it an environment of its own",
        ),
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            ("onnxft[gpu]",),
            "bound",
            # TF32 is off: it would make float32 gradients wrong in the third digit.
            lambda threads: {"use_tf32": "0"},
            needs="an NVIDIA GPU with its driver, CUDA and cuDNN; it replaces the stock runtime, so use an environment "
            "of its own",
        ),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            ("onnxft[gpu]",),
            "bound",
            lambda threads: {"trt_fp16_enable": "0", "trt_bf16_enable": "0"},
            needs="an NVIDIA GPU with its driver, CUDA, cuDNN and TensorRT; use an environment of its own",
        ),
    )
}


def provider(name: str) -> Provider:
    """The entry of a provider; ProviderError with near names where there is none."""
    try:
        return PROVIDERS[name]
    except KeyError:
        raise ProviderError(f"unknown provider '{name}'.{near(name, PROVIDERS)}") from None


@cache
def runtime() -> ModuleType:
    """The onnxruntime module; ProviderError where none is installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as err:
        raise ProviderError(
            f"onnxruntime cannot be imported ({err}). Install one runtime: `pip install onnxft[cpu]` "
            "(or another provider's extra, see `onnxft doctor`)."
        ) from err


@cache
def plugin_devices(entry: Provider) -> tuple[Any, ...]:
    """Devices that a plug-in package offers here, registering its library once; empty without the package."""
    if entry.plugin is None:
        return ()
    ort = runtime()
    try:
        module = importlib.import_module(entry.plugin)
    except ImportError:
        return ()
    try:
        ort.register_execution_provider_library(entry.runtime_name, module.get_library_path())
    except Exception as err:  # the runtime raises its own classes, one a status code
        raise ProviderError(
            f"the plug-in library of '{entry.name}' ({entry.plugin}) does not load: {first_line(err)}. "
            f"Reinstall it: {entry.how_to_install}."
        ) from err
    return tuple(
        d for d in ort.get_ep_devices()
        if d.ep_name == entry.runtime_name and d.device.type == ort.OrtHardwareDeviceType.CPU
    )  # fmt: skip


def is_builtin(entry: Provider) -> bool:
    """Whether the installed runtime was built with the provider (which does not mean that it loads)."""
    return entry.runtime_name in runtime().get_available_providers()


def first_line(err: BaseException) -> str:
    """The first line of an error that says something, without the runtime's status prefix."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
    return lines[0].removeprefix("[ONNXRuntimeError] : ").rstrip(".")
