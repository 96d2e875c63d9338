"""Why a provider does not load on this machine, and what would make it work."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onnxft.errors import ProviderError
from onnxft.runtime import nvidia
from onnxft.runtime.needs import Lack, Need
from onnxft.runtime.providers import SYSTEMS, Provider, is_builtin, runtime

Problems = list[tuple[str, str]]
"""[(what is wrong, what to get)]"""

_X86 = ("x86_64", "amd64")


def missing(entry: Provider) -> Lack | None:
    """The system, hardware, drivers, libraries and package that `entry` lacks; None where none is known to be.

    Quick, and nothing is loaded, so that an error can say it.
    """
    if not sys.platform.startswith(entry.systems):
        made_for = " or ".join(SYSTEMS[system] for system in entry.systems)
        here = SYSTEMS.get(sys.platform, sys.platform)
        return Lack((f"it is made for {made_for}, and this is {here}",), (f"a machine with {made_for}",))
    needs = nvidia.needs(entry.name) if entry.name in ("cuda", "tensorrt", "nv-tensorrt-rtx") else ()
    problems = [(need.problem, need.step) for need in needs if need.problem]
    if entry.name in _MACHINE:
        problems += _MACHINE[entry.name](entry)
    if not offers(entry):
        problems.append((_not_offered(entry, needs), how_to_install(entry)))
    if not problems:
        return None
    reasons, steps = zip(*problems, strict=True)
    return Lack(tuple(dict.fromkeys(reasons)), tuple(dict.fromkeys(steps)), needs)


def offers(entry: Provider) -> bool:
    """Whether the runtime has the provider built in, or its plug-in package is installed; loads neither."""
    return _is_builtin(entry) or plugin_package(entry) is not None


def plugin_package(entry: Provider) -> str | None:
    """Name and version of the installed plug-in package of a provider."""
    if entry.plugin is None or importlib.util.find_spec(entry.plugin) is None:
        return None
    from importlib import metadata  # takes as long to import as onnxruntime

    name = entry.plugin.replace("_", "-")
    with suppress(metadata.PackageNotFoundError):
        return f"{name} {metadata.version(name)}"
    return name


def how_to_install(entry: Provider) -> str:
    """The command for this machine, and whether the package stands beside the runtime or replaces it."""
    packages = entry.packages
    if entry.name == "openvino":
        packages = packages[:1] if _is_intel() else packages[1:]
    return ", or ".join(f"`pip install {package}`{_where(entry, package)}" for package in packages)


def why_not_loaded(entry: Provider) -> str:
    """What the loader says of the library of a provider that is built in, asked in a process of its own."""
    file = next((Path(str(runtime().__file__)).parent / "capi").glob(f"*onnxruntime_providers_{entry.name}.*"), None)
    silent = "the runtime does not say why"
    if file is None:
        return silent
    command = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(file)]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=2)
        said = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("OSError: ")
        if done.returncode and "Provider_GetHost" not in said:  # what only the runtime itself has
            return said or silent
    return silent


def _where(entry: Provider, package: str) -> str:
    if package == "onnxft[cpu]":
        return ""
    is_plugin = package == "onnxft[openvino]" or package.replace("-", "_") == entry.plugin
    return " beside this runtime" if is_plugin else " in an environment of its own"


def _is_builtin(entry: Provider) -> bool:
    with suppress(ProviderError):  # there is no runtime, which is said below
        return is_builtin(entry)
    return False


def _not_offered(entry: Provider, needs: tuple[Need, ...]) -> str:
    try:
        reason = f"onnxruntime {runtime().__version__} was built without it"
    except ProviderError:
        return "onnxruntime cannot be imported"
    if entry.plugin is not None:
        reason += f", and its plug-in {entry.plugin.replace('_', '-')} is not installed"
    wanted = [f"{need.what} {need.wanted}" for need in needs[1:]]
    return f"{reason}; the one with it wants {', '.join(wanted)}" if wanted else reason


# ----- hardware and drivers of one provider each -----


def _openvino(entry: Provider) -> Problems:
    if platform.machine().lower() not in _X86:
        return [(f"it is made for x86-64, and this processor is {platform.machine()}", "an x86-64 processor")]
    if plugin_package(entry) and not _is_builtin(entry) and not _is_intel():
        problem = f"{plugin_package(entry)} serves Intel hardware alone, which this is not"
        return [(problem, how_to_install(entry))]
    return []


def _is_intel() -> bool:
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text(errors="replace") if info.is_file() else platform.processor())


def _webgpu(entry: Provider) -> Problems:
    if sys.platform != "linux" or any(_vulkan_drivers()):
        return []
    return [("there is no Vulkan driver (no file in /usr/share/vulkan/icd.d)", "a GPU with its Vulkan driver")]


def _vulkan_drivers() -> list[Path]:
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if named:
        return [path for path in map(Path, named.split(os.pathsep)) if path.exists()]
    return [file for root in ("/usr/share", "/etc", "/usr/local/share") for file in Path(root).glob("vulkan/icd.d/*")]


def _migraphx(entry: Provider) -> Problems:
    found: Problems = []
    if not Path("/dev/kfd").exists():
        found.append(("there is no driver of an AMD GPU (/dev/kfd not found)", "an AMD GPU with its driver amdgpu"))
    if not Path("/opt/rocm").exists():
        found.append(("ROCm is not installed (/opt/rocm not found)", "ROCm"))
    return found


def _qnn(entry: Provider) -> Problems:
    if platform.machine().lower() not in _X86:
        return []
    return [
        (f"this processor ({platform.machine()}) is no Qualcomm Snapdragon", "a machine with a Qualcomm Snapdragon")
    ]


_MACHINE: dict[str, Callable[[Provider], Problems]] = {
    "openvino": _openvino,
    "webgpu": _webgpu,
    "migraphx": _migraphx,
    "qnn": _qnn,
}
