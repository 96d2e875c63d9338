"""What the providers of NVIDIA need: driver, CUDA, cuDNN and TensorRT, wanted and found.

Nothing is loaded to find out: a broken driver may hang or end the process.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnxft.errors import ProviderError
from onnxft.runtime.needs import Need
from onnxft.runtime.nvidia_files import Driver, Library, find_driver, find_gpus, find_libraries
from onnxft.runtime.providers import runtime

_DRIVERS = {11: 450, 12: 525, 13: 580}
"""{major version of CUDA: the first driver that runs it}"""
_PACKAGES = {
    "cudart": ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"),
    "cudnn": ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    "nvinfer": ("tensorrt-cu13-libs", "tensorrt-cu12-libs"),
}
"""{library: packages of pip that bring it}; they know the version in full."""


@dataclass(frozen=True)
class Wanted:
    """Major versions that a runtime was built for."""

    by: str
    """The runtime, as `onnxruntime-gpu 1.31.1`."""
    cuda: int = 13
    cudnn: int = 9
    tensorrt: int = 10


NEWEST = Wanted("onnxruntime-gpu 1.31")
"""What `pip install onnxft[gpu]` brings; read from that wheel, where its libraries name what they were linked with."""


def needs(provider: str) -> tuple[Need, ...]:
    """Driver, CUDA, cuDNN and, for `tensorrt`, TensorRT; `nv-tensorrt-rtx` has the libraries in its package."""
    wanted = wanted_versions()
    driver = _driver(wanted, find_driver(), find_gpus())
    if provider == "nv-tensorrt-rtx":
        return (driver,)
    found = find_libraries()
    install = f"`pip install 'onnxruntime-gpu[cuda,cudnn]'`, which brings CUDA {wanted.cuda} and cuDNN {wanted.cudnn}"
    parts = [
        driver,
        _library("CUDA", ("cudart", "cublasLt", "cublas"), wanted.cuda, wanted.by, found, install),
        _library("cuDNN", ("cudnn",), wanted.cudnn, wanted.by, found, install),
    ]
    if provider == "tensorrt":
        install = f"`pip install 'tensorrt-cu{wanted.cuda}<{wanted.tensorrt + 1}'`, as pip's newest is another"
        parts.append(_library("TensorRT", ("nvinfer", "nvonnxparser"), wanted.tensorrt, wanted.by, found, install))
    return tuple(parts)


@cache
def wanted_versions() -> Wanted:
    """Read from the installed onnxruntime-gpu; what pip would bring where there is none."""
    try:
        ort = runtime()
        built = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except (ProviderError, ImportError):
        return NEWEST
    cuda = str(getattr(built, "cuda_version", "") or "").partition(".")[0]
    if not cuda.isdigit():
        return NEWEST
    by = f"{getattr(built, 'package_name', 'onnxruntime-gpu')} {ort.__version__}"
    folder = Path(str(ort.__file__)).parent / "capi"
    # The provider of TensorRT names the libraries that it was linked with, and it is small.
    names = next((file.read_bytes() for file in folder.glob("*onnxruntime_providers_tensorrt.*")), b"")
    cudnn, tensorrt = (
        int(m.group(1)) if (m := re.search(rb"%b(?:64)?(?:\.so\.|_)(\d+)" % name, names)) else default
        for name, default in ((b"cudnn", NEWEST.cudnn), (b"nvinfer", NEWEST.tensorrt))
    )
    return Wanted(by, int(cuda), cudnn, tensorrt)


def _driver(wanted: Wanted, driver: Driver | None, num_gpus: int | None) -> Need:
    oldest = _DRIVERS.get(wanted.cuda, max(_DRIVERS.values()))
    need = f"{oldest} or newer"
    install = f"NVIDIA's driver {need}"
    if num_gpus == 0:
        install = f"a machine with an NVIDIA GPU (none is on the PCI bus here) and {install}"
    if driver is None:
        problem = "no NVIDIA driver (nvidia-smi, libcuda.so.1 not found)"
        return Need("NVIDIA driver", need, "none", problem, install)
    found = driver.version or "version unknown"
    if not driver.has_library:
        problem = f"the NVIDIA driver {found} is loaded, but libcuda.so.1 is not found"
        step = f"the driver's libraries ({install}; in a container: `--gpus all`)"
        return Need("NVIDIA driver", need, f"{found} without libcuda.so.1", problem, step)
    if driver.major is not None and driver.major < oldest:
        problem = f"the NVIDIA driver {found} does not run CUDA {wanted.cuda}"
        return Need("NVIDIA driver", need, found, problem, install)
    return Need("NVIDIA driver", need, f"{found}{', ' + ', '.join(driver.gpus) if driver.gpus else ''}")


def _library(
    what: str, names: tuple[str, ...], major: int, by: str, found: Mapping[str, tuple[Library, ...]], install: str
) -> Need:
    """Whether all libraries of a product are there in the major version that the runtime was linked with."""
    fitting = {name: [lib for lib in found.get(name, ()) if lib.major == major] for name in names}
    first = names[0]
    there = fitting[first] or list(found.get(first, ()))
    if not there:
        return Need(what, str(major), "none", f"no {what} {major} (lib{first}.so.{major} not found)", install)
    library = next((lib for lib in there if lib.is_loadable), there[0])
    version = _version(first, library)
    text = f"{version} in {library.path.parent}"
    if not fitting[first]:
        problem = f"{what} {version} is installed, and {by} wants {major}"
        return Need(what, str(major), text, problem, install)
    absent = [f"lib{name}.so.{major}" for name in names if not fitting[name]]
    if absent:
        return Need(what, str(major), f"{text}, without {', '.join(absent)}", f"{', '.join(absent)} not found", install)
    if not library.is_loadable:
        problem = f"{what} {version} is in {library.path.parent}, where the loader does not look"
        return Need(what, str(major), text, problem, f"`export LD_LIBRARY_PATH={library.path.parent}`")
    return Need(what, str(major), text)


def _version(name: str, library: Library) -> str:
    """As exact as can be told: from the file's name, or the package of pip that it came with."""
    if "." not in library.version and {"site-packages", "dist-packages"} & {*library.path.parts}:
        from importlib import metadata  # takes as long to import as onnxruntime

        for package in _PACKAGES.get(name, ()):
            with suppress(metadata.PackageNotFoundError):
                version = metadata.version(package)
                if version.partition(".")[0] == str(library.major):
                    return version
    return library.version
