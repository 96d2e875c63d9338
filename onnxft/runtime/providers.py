"""The table of execution providers: how each is found, what is set, how its buffers are bound.

Adding a provider is one entry of `PROVIDERS`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

from onnxft.errors import ProviderError, near
from onnxft.runtime.execution import Execution, Precision

Binding = Literal["bound", "values"]
"""How state goes from one step to the next.

`bound`: inputs and outputs are bound once to two sets of buffers that change places each step.
`values`: the outputs of a run are handed to the next run as they are. Needed where a provider
copies inputs when they are bound (OpenVINO): its second step would read stale parameters.
"""

Options = dict[str, str]

_SOURCE = re.compile(r"^\S+\.(?:cc|cpp|cu|h):\d+ [^()]*\([^()]*\)(?: const)? +")
"""File, line and function with which an error of the runtime may begin."""

SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
"""{value of `sys.platform`: name of the system}"""

AUTO = "auto"
"""Stands for the fastest provider that works; see `onnxft.runtime.auto`."""


def _no_options(asked: Execution) -> Options:
    return {}


def _device_id(asked: Execution) -> Options:
    return {"device_id": str(asked.device or 0)}


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    name: str
    runtime_name: str
    packages: tuple[str, ...]
    """Packages that bring it, the recommended one first."""
    binding: Binding = "values"
    options: Callable[[Execution], Options] = _no_options
    """What is set for a request; the precision is always set, never left to a default."""
    plugin: str | None = None
    """Module of a plug-in package, where there is one (it has get_library_path)."""
    hardware: str = "CPU"
    """Kind of device that it runs on unless the option `device_type` says otherwise: CPU, GPU or NPU."""
    memory: str = "cpu"
    """Where parameters and state live: the runtime's name of the device's memory."""
    behind: tuple[str, ...] = ()
    """Providers that take the nodes it leaves, before the CPU."""
    updates_on: str = ""
    """Provider that runs the graphs `update` and `average`, where it is faster there; both work on the CPU's memory."""
    slow_fusions: tuple[str, ...] = ()
    """The runtime's graph optimizations with which it takes longer."""
    precisions: tuple[Precision, ...] = ("float32",)
    prefix: str = ""
    """Of its options, where a built-in provider reads them from the session's own."""
    known_options: tuple[str, ...] = ()
    """Names of its options, where it would pass over another in silence."""
    lowers_by: Literal["graph", "option"] = "graph"
    """How a precision below float32 comes about: by graphs of the artifact that have its types, or by an option."""
    processor_flags: tuple[str, ...] = ()
    """Flags of /proc/cpuinfo of which a precision below float32 needs one, where the processor computes."""
    graph: str = ""
    """What of a graph it does not take, for messages; graphs of onnxft have opset 18, and fixed shapes in a session."""
    systems: tuple[str, ...] = ("linux", "win32", "darwin")
    """Values of `sys.platform` for which its packages are made."""
    needs: str = ""
    """What must be on the machine besides the package."""

    @property
    def how_to_install(self) -> str:
        """The command that brings the provider, with what else the machine needs."""
        if not sys.platform.startswith(self.systems):
            return f"{' or '.join(SYSTEMS[s] for s in self.systems)}, which this machine does not run"
        command = " or ".join(f"`pip install {package}`" for package in self.packages)
        return f"{command}{f' ({self.needs})' if self.needs else ''}"


def _openvino_options(asked: Execution) -> Options:
    # Left alone, OpenVINO computes in bfloat16 on processors that have it. It lowers what leads to a product; what lies
    # between the last product and an output stays float32: loss, weight sum, accumulators.
    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[asked.precision]
    device = asked.options.get("device_type", "CPU")
    config = {"INFERENCE_PRECISION_HINT": hint}
    if asked.threads is not None and device == "CPU":
        config["INFERENCE_NUM_THREADS"] = str(asked.threads)
    kind = device.partition(".")[0]
    given = asked.options.get("load_config")
    if given is not None and f'"{hint}"' not in given:
        raise ProviderError(
            f"the provider option load_config takes the place of what onnxft sets, and does not say {asked.precision}: "
            f'add "INFERENCE_PRECISION_HINT": "{hint}" for {kind}, or leave load_config out.'
        )
    return {"device_type": device, "load_config": json.dumps({kind: config})}


def _cuda_options(asked: Execution) -> Options:
    return {
        **_device_id(asked),
        # TF32 would make float32 gradients wrong in the third digit.
        "use_tf32": "0",
        # Shapes are fixed, so that the search is made once for each convolution.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        # Powers of two would double what is held.
        "arena_extend_strategy": "kSameAsRequested",
    }


def _tensorrt_options(asked: Execution) -> Options:
    return {
        **_device_id(asked),
        # Without these TensorRT 10 keeps the types of the graph, which say what is half precision; with one of them
        # it would choose by speed, the loss and the accumulators too.
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        # Building an engine takes minutes; `sessions` adds where it is kept.
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
    }


def _webgpu_options(asked: Execution) -> Options:
    # In NHWC, its own choice, 1.27 convolves wrongly, without an error, where the input channels are a multiple of 3
    # and not of 4, such as 6 or 9, and the output channels a multiple of 4; and the runtime does not record its nodes.
    # The device is kept with the programs compiled for it, which the next session would compile again.
    return {"preferredLayout": "NCHW", "preserveDevice": "1"}


_ENVIRONMENT = "it replaces the stock runtime, so use an environment of its own"

PROVIDERS: dict[str, Provider] = {
    p.name: p
    for p in (
        Provider(
            "cpu",
            "CPUExecutionProvider",
            ("onnxft[cpu]",),
            "bound",
            # The first has no vector instructions, and takes 4 times as long as Add and LayerNormalization. Of the
            # second comes a Gemm that writes the bias to all of its result before the product; the third takes a
            # quarter longer than Add and Gelu.
            slow_fusions=("SkipLayerNormFusion", "MatMulAddFusion", "BiasGeluFusion"),
            known_options=("graph_cache_enable",),  # which `graph_cache` reads; the runtime's own has none
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            ("onnxft[openvino]", "onnxft[openvino-builtin]"),
            options=_openvino_options,
            plugin="onnxruntime_ep_openvino",
            updates_on="cpu",  # in place, where OpenVINO makes new tensors, some in other layouts
            precisions=("float32", "bfloat16"),
            lowers_by="option",
            processor_flags=("avx512_bf16", "amx_bf16"),
            needs="the first serves Intel hardware beside the stock runtime; the second replaces the stock runtime "
            "and serves every x86-64 processor: give it an environment of its own",
            systems=("linux", "win32"),
        ),
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            ("onnxft[gpu]",),
            "bound",
            _cuda_options,
            hardware="GPU",
            memory="cuda",
            precisions=("float32", "bfloat16", "float16"),
            systems=("linux", "win32"),
            needs=f"an NVIDIA GPU with its driver, CUDA and cuDNN 9; {_ENVIRONMENT}",
        ),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            ("onnxft[gpu]",),
            "bound",
            _tensorrt_options,
            hardware="GPU",
            memory="cuda",
            behind=("cuda",),
            precisions=("float32", "bfloat16", "float16"),
            graph="ScatterElements with reduction (gradients of embeddings)",
            systems=("linux", "win32"),
            needs=f"an NVIDIA GPU with its driver, CUDA, cuDNN 9 and TensorRT 10; {_ENVIRONMENT}",
        ),
        Provider(
            "nv-tensorrt-rtx",
            "NvTensorRTRTXExecutionProvider",
            ("onnxruntime-ep-nv-tensorrt-rtx",),
            plugin="onnxruntime_ep_nv_tensorrt_rtx",
            hardware="GPU",
            graph="ScatterElements with reduction (gradients of embeddings)",
            systems=("linux", "win32"),
            needs="an NVIDIA RTX GPU, Ampere or newer, with its driver; it stands beside the stock runtime",
        ),
        Provider(
            "webgpu",
            "WebGpuExecutionProvider",
            ("onnxruntime-webgpu", "onnxruntime-ep-webgpu"),
            plugin="onnxruntime_ep_webgpu",
            options=_webgpu_options,
            prefix="ep.webgpuexecutionprovider.",
            known_options=("preferredLayout", "preserveDevice", "powerPreference", "dawnBackendType", "validationMode"),
            hardware="GPU",
            needs="a GPU with a Vulkan, Direct3D 12 or Metal driver; the first replaces the stock runtime, the second "
            "stands beside it",
        ),
        Provider(
            "directml",
            "DmlExecutionProvider",
            ("onnxruntime-directml",),
            options=_device_id,
            hardware="GPU",
            systems=("win32",),
            needs=f"a GPU with a Direct3D 12 driver; {_ENVIRONMENT}",
        ),
        Provider(
            "coreml",
            "CoreMLExecutionProvider",
            ("onnxft[cpu]",),
            options=lambda asked: {"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"},
            hardware="NPU",
            systems=("darwin",),
            needs="macOS 12 or newer; it is in the stock runtime there",
        ),
        Provider(
            "migraphx",
            "MIGraphXExecutionProvider",
            ("onnxruntime-migraphx",),
            options=lambda asked: {**_device_id(asked), "migraphx_fp16_enable": "0"},
            hardware="GPU",
            systems=("linux",),
            needs=f"an AMD GPU with ROCm; {_ENVIRONMENT}",
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            ("onnxruntime-qnn",),
            options=lambda asked: {"backend_type": "gpu"},
            plugin="onnxruntime_qnn",
            hardware="GPU",
            needs="a Qualcomm Snapdragon with its drivers",
            systems=("linux", "win32"),
        ),
    )
}


def provider(name: str) -> Provider:
    """The entry of a provider; ProviderError with near names where there is none."""
    try:
        return PROVIDERS[name]
    except KeyError:
        raise ProviderError(f"unknown provider '{name}'.{near(name, (*PROVIDERS, AUTO))}") from None


@cache
def runtime() -> ModuleType:
    """The onnxruntime module; ProviderError where none is installed."""
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as err:
        raise ProviderError(
            f"onnxruntime cannot be imported ({first_line(err)}). Install one runtime: `pip install onnxft[cpu]` "
            "(or another provider's extra, see `onnxft doctor`)."
        ) from err
    if not hasattr(module, "InferenceSession"):
        raise ProviderError(
            "onnxruntime has no InferenceSession: its files are incomplete, as after the removal of another runtime "
            "package. `onnxft doctor` says how to mend it."
        )
    # What the runtime logs while it looks for a provider's libraries is checked, and said, by this package.
    module.set_default_logger_severity(4)
    return module


@cache
def plugin_devices(entry: Provider) -> tuple[Any, ...]:
    """Devices of all kinds that a plug-in package offers here, registering its library once; empty without it."""
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
    return tuple(d for d in ort.get_ep_devices() if d.ep_name == entry.runtime_name)


def is_builtin(entry: Provider) -> bool:
    """Whether the installed runtime was built with the provider (which does not mean that it loads)."""
    return entry.runtime_name in runtime().get_available_providers()


def first_line(err: BaseException) -> str:
    """The first line of an error that says something, without the runtime's status prefix and place in its source."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
    return _SOURCE.sub("", lines[0].removeprefix("[ONNXRuntimeError] : ")).rstrip(".")
