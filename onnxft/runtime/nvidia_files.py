"""Finding NVIDIA's driver, GPUs and libraries by their files, and loading those that pip installed."""

from __future__ import annotations

import ctypes
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnxft.runtime.providers import runtime

_NAMES = ("cudart", "cublasLt", "cublas", "cudnn", "nvinfer", "nvonnxparser")
_FILE = re.compile(
    rf"(?:lib)?(?P<name>{'|'.join(_NAMES)})(?:\.so\.(?P<linux>\d+(?:\.\d+)*)|(?:64)?_(?P<windows>\d+)\.dll)"
)
_PLACES = ("usr/local/cuda*/lib64", "opt/[Tt]ensor[Rr][Tt]*/lib")
"""Where archives are unpacked, and the loader does not look by itself."""
_PATIENCE = 2.0
"""Seconds for a tool of the system; an error must not be long in coming."""


@dataclass(frozen=True)
class Driver:
    """The installed driver."""

    version: str
    """Empty where it cannot be told."""
    has_library: bool = True
    """Whether programs find libcuda."""
    gpus: tuple[str, ...] = ()

    @property
    def major(self) -> int | None:
        """580 of 580.65.06."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else None


@dataclass(frozen=True)
class Library:
    """One file of a library."""

    path: Path
    version: str
    """As the file's name says, links followed: `13.0.96`, or `9` alone."""
    is_loadable: bool = True
    """Whether the loader looks there, or `load_packages` loads it."""

    @property
    def major(self) -> int:
        """That of the version, which is part of the name that a program asks for."""
        return int(self.version.partition(".")[0])


@cache
def find_driver() -> Driver | None:
    """From the kernel's files, or else from nvidia-smi (Windows and its Linux)."""
    loaded = Path("/proc/driver/nvidia/version")
    has_library = sys.platform == "win32" or "libcuda.so.1" in _loader_cache() or _is_on_path("libcuda.so.1")
    if loaded.is_file():
        match = re.search(r"\s(\d{3,}(?:\.\d+)+)\s", loaded.read_text(errors="replace"))
        models = (
            re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE)
            for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        )
        return Driver(match.group(1) if match else "", has_library, tuple(m.group(1).strip() for m in models if m))
    said = _output("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader").strip()
    lines = [line.split(", ", 1) for line in said.splitlines() if line[:1].isdigit()]
    if lines:
        return Driver(lines[0][0], has_library, tuple(line[-1] for line in lines))
    return Driver("") if sys.platform != "win32" and has_library else None


@cache
def find_gpus() -> int | None:
    """NVIDIA's display and compute devices on the PCI bus; None where that cannot be told."""
    devices = Path("/sys/bus/pci/devices")
    if not devices.is_dir() or Path("/dev/dxg").exists():  # Windows hands its GPU to its Linux another way
        return None
    count = 0
    for device in devices.iterdir():
        with suppress(OSError):
            nvidia = (device / "vendor").read_text().strip() == "0x10de"
            count += nvidia and (device / "class").read_text().startswith("0x03")
    return count


@cache
def find_libraries() -> dict[str, tuple[Library, ...]]:
    """{library: its files}, those that would be loaded first."""
    found: dict[str, list[Library]] = {}
    for path, is_loadable in _candidates():
        if match := _FILE.fullmatch(path.name):
            exact = _FILE.fullmatch(path.resolve().name) or match
            version = exact["linux"] or exact["windows"]
            libraries = found.setdefault(match["name"], [])
            if path.resolve() not in (lib.path.resolve() for lib in libraries):
                libraries.append(Library(path, version, is_loadable))
    return {name: tuple(libraries) for name, libraries in found.items()}


@cache
def load_packages() -> None:
    """Load CUDA, cuDNN and TensorRT from the packages of pip, where the loader does not look by itself."""
    if not any(True for _ in _package_folders()):
        return
    preload = getattr(runtime(), "preload_dlls", None)  # since onnxruntime 1.21
    if preload is not None:
        with redirect_stdout(io.StringIO()), suppress(RuntimeError):  # it prints what it does not find
            preload()
    for name in ("nvinfer", "nvonnxparser"):
        for library in find_libraries().get(name, ()):
            if "tensorrt_libs" in library.path.parts:
                with suppress(OSError):  # of another version, or in want of CUDA: the session says so
                    ctypes.CDLL(str(library.path), mode=ctypes.RTLD_GLOBAL)


def _candidates() -> Iterator[tuple[Path, bool]]:
    """(file, whether it is loaded), in the order in which they are taken."""
    for folder in (*_package_folders(), *_path()):
        yield from ((path, True) for path in _files(folder))
    yield from ((path, True) for path in _loader_cache().values())
    for place in _PLACES:
        yield from ((path, False) for path in sorted(Path("/").glob(f"{place}/*.so.*")))


def _path() -> list[Path]:
    """Folders in which the loader looks before all others."""
    variable = os.environ.get("PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH", "")
    return [Path(folder) for folder in variable.split(os.pathsep) if folder]


def _is_on_path(name: str) -> bool:
    return any((folder / name).is_file() for folder in _path())


def _package_folders() -> Iterator[Path]:
    part = "bin" if sys.platform == "win32" else "lib"
    for root in map(Path, sys.path):
        if root.name in ("site-packages", "dist-packages"):
            yield from sorted(root.glob(f"nvidia/*/{part}"))
            yield from sorted(root.glob("tensorrt_libs"))


def _files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


@cache
def _loader_cache() -> dict[str, Path]:
    """{name of a library: file} of ldconfig's cache."""
    if sys.platform != "linux":
        return {}
    tool = shutil.which("ldconfig") or "/sbin/ldconfig"
    lines = (line.strip().partition(" ") for line in _output(tool, "-p").splitlines() if " => " in line)
    return {name: Path(rest.partition(" => ")[2]) for name, _, rest in lines}


def _output(*command: str) -> str:
    """What a tool prints; empty where it is not there, fails or takes too long."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=True
        ).stdout
    return ""
