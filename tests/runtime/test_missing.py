"""Why a provider does not load, on machines of several kinds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import missing as module
from onnxft.runtime.execution import Execution
from onnxft.runtime.missing import missing
from onnxft.runtime.needs import Need
from onnxft.runtime.providers import PROVIDERS, runtime
from onnxft.runtime.sessions import open_session

OWN = "in an environment of its own"
OPENVINO_PLUGIN = "onnxruntime-ep-openvino 1.8.1"
NO_GPU = (Need("NVIDIA driver", "580 or newer", "none", "no driver", "a driver"), Need("CUDA", "13", "13"))


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    system: str = "linux",
    processor: str = "x86_64",
    intel: bool = False,
    builtin: tuple[str, ...] = (),
    plugin: str | None = None,
    vulkan: bool = False,
) -> None:
    monkeypatch.setattr(module.sys, "platform", system)
    monkeypatch.setattr(module.platform, "machine", lambda: processor)
    monkeypatch.setattr(module, "_is_intel", lambda: intel)
    monkeypatch.setattr(module, "_is_builtin", lambda entry: entry.name in builtin)
    monkeypatch.setattr(module, "plugin_package", lambda entry: plugin)
    monkeypatch.setattr(module, "_vulkan_drivers", lambda: [Path("icd.json")] if vulkan else [])
    monkeypatch.setattr(module.nvidia, "needs", lambda name: NO_GPU)


@pytest.mark.parametrize(
    ("name", "here", "reasons", "steps"),
    [
        ("cpu", {"builtin": ("cpu",)}, None, None),
        ("coreml", {}, ["made for macOS, and this is Linux"], ["a machine with macOS"]),
        ("coreml", {"system": "darwin", "builtin": ("coreml",)}, None, None),
        ("directml", {}, ["made for Windows, and this is Linux"], ["a machine with Windows"]),
        ("cuda", {"system": "darwin"}, ["made for Linux or Windows, and this is macOS"], ["machine with Linux or"]),
        ("directml", {"system": "win32"}, ["was built without it"], [f"`pip install onnxruntime-directml` {OWN}"]),
        (
            "cuda", {}, ["no driver", "was built without it; the one with it wants CUDA 13"],
            ["a driver", f"`pip install onnxft[gpu]` {OWN}"],
        ),
        ("cuda", {"builtin": ("cuda",)}, ["no driver"], ["a driver"]),
        (
            "nv-tensorrt-rtx", {}, ["no driver", "its plug-in onnxruntime-ep-nv-tensorrt-rtx is not installed"],
            ["a driver", "`pip install onnxruntime-ep-nv-tensorrt-rtx` beside this runtime"],
        ),
        ("openvino", {"builtin": ("openvino",)}, None, None),
        ("openvino", {}, ["its plug-in"], [f"`pip install onnxft[openvino-builtin]` {OWN}"]),
        ("openvino", {"intel": True}, ["its plug-in"], ["`pip install onnxft[openvino]` beside this runtime"]),
        ("openvino", {"intel": True, "plugin": OPENVINO_PLUGIN}, None, None),
        (
            "openvino", {"plugin": OPENVINO_PLUGIN}, [f"{OPENVINO_PLUGIN} serves Intel hardware alone"],
            [f"`pip install onnxft[openvino-builtin]` {OWN}"],
        ),
        ("openvino", {"processor": "aarch64"}, ["this processor is aarch64", "plug-in"], ["an x86-64", "pip"]),
        (
            "webgpu", {"plugin": "onnxruntime-ep-webgpu 0.4"}, ["there is no Vulkan driver"],
            ["a GPU with its Vulkan driver"],
        ),
        ("webgpu", {"vulkan": True, "builtin": ("webgpu",)}, None, None),
        (
            "webgpu", {"vulkan": True}, ["plug-in onnxruntime-ep-webgpu is not installed"],
            [f"`pip install onnxruntime-webgpu` {OWN}, or `pip install onnxruntime-ep-webgpu` beside this runtime"],
        ),
        ("qnn", {"plugin": "onnxruntime-qnn 2.7"}, ["(x86_64) is no Qualcomm Snapdragon"], ["a machine with a Qual"]),
        ("qnn", {"plugin": "onnxruntime-qnn 2.7", "processor": "aarch64"}, None, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_why_it_does_not_load_and_what_would_make_it(
    monkeypatch: pytest.MonkeyPatch, name: str, here: dict[str, Any], reasons: list[str] | None, steps: list[str] | None
) -> None:
    machine(monkeypatch, **here)
    lack = missing(PROVIDERS[name])
    if lack is None:
        assert reasons is None
        return
    assert reasons is not None
    assert steps is not None
    assert all(words in said for words, said in zip(reasons, lack.reasons, strict=True))
    assert all(words in said for words, said in zip(steps, lack.steps, strict=True))


@pytest.mark.parametrize("exists", [(), ("/dev/kfd",), ("/dev/kfd", "/opt/rocm")])
def test_migraphx_names_the_driver_and_rocm(monkeypatch: pytest.MonkeyPatch, exists: tuple[str, ...]) -> None:
    machine(monkeypatch, builtin=("migraphx",))
    monkeypatch.setattr(module.Path, "exists", lambda path: str(path) in exists)
    lack = missing(PROVIDERS["migraphx"])
    assert [word for word in ("/dev/kfd", "/opt/rocm") if lack and any(word in r for r in lack.reasons)] == [
        word for word in ("/dev/kfd", "/opt/rocm") if word not in exists
    ]


def test_without_a_runtime_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ProviderError("onnxruntime cannot be imported.")

    monkeypatch.setattr(module, "runtime", none)
    monkeypatch.setattr("onnxft.runtime.providers.runtime", none)
    lack = missing(PROVIDERS["cpu"])
    assert lack is not None
    assert lack.reasons == ("onnxruntime cannot be imported",)


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_session_says_the_reason_quickly(name: str) -> None:
    """The whole of it: what is looked for on this machine, and by which tools."""
    lack = missing(PROVIDERS[name])
    if lack is None:
        pytest.skip(f"'{name}' has all it needs here")
    start = time.perf_counter()
    with pytest.raises(ProviderError) as err:
        open_session(b"", Execution(name))
    assert time.perf_counter() - start < 3
    for said in (*lack.reasons, *lack.steps):
        assert said in str(err.value)


def test_the_loader_says_why_a_library_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(module, "runtime", lambda: type("Runtime", (), {"__file__": str(tmp_path / "__init__.py")}))
    assert module.why_not_loaded(PROVIDERS["cuda"]) == "the runtime does not say why"
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert "libonnxruntime_providers_cuda.so" in module.why_not_loaded(PROVIDERS["cuda"])
    assert runtime().__version__
