"""What NVIDIA's providers want and what is found, on machines made up of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxft.runtime import nvidia, nvidia_files
from onnxft.runtime.nvidia import Wanted
from onnxft.runtime.nvidia_files import Driver, Library

WANTED = Wanted("onnxruntime-gpu 1.31.1", cuda=13, cudnn=9, tensorrt=10)
DRIVER = Driver("580.65.06", True, ("NVIDIA L4",))
LIB = Path("/usr/lib/x86_64-linux-gnu")
NEW = {name: (Library(LIB / f"lib{name}.so.13", "13.0.96"),) for name in ("cudart", "cublasLt", "cublas")}
CUDNN = {"cudnn": (Library(LIB / "libcudnn.so.9", "9.14.0"),)}
TENSORRT = {name: (Library(LIB / f"lib{name}.so.10", "10.13.3"),) for name in ("nvinfer", "nvonnxparser")}
OLD = {name: (Library(LIB / f"lib{name}.so.12", "12.4.99"),) for name in ("cudart", "cublasLt", "cublas")}
TENSORRT_11 = {name: (Library(LIB / f"lib{name}.so.11", "11.4.0"),) for name in ("nvinfer", "nvonnxparser")}
ASIDE = {n: (Library(Path("/usr/local/cuda-13.0/lib64") / p[0].path.name, "13.0.96", False),) for n, p in NEW.items()}

PIP_CUDA = "`pip install 'onnxruntime-gpu[cuda,cudnn]'`, which brings CUDA 13 and cuDNN 9"
PIP_TENSORRT = "`pip install 'tensorrt-cu13<11'`, as pip's newest is another"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What is found once is kept for the process; these tests change it."""
    kept = (
        nvidia.wanted_versions, nvidia_files.find_driver, nvidia_files.find_gpus, nvidia_files.find_libraries,
        nvidia_files._loader_cache,
    )  # fmt: skip
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.parametrize(
    ("provider", "driver", "num_gpus", "libraries", "found", "problems"),
    [
        ("cuda", DRIVER, 1, NEW | CUDNN, ["580.65.06, NVIDIA L4", f"13.0.96 in {LIB}", f"9.14.0 in {LIB}"], {}),
        ("tensorrt", DRIVER, 1, NEW | CUDNN | TENSORRT, [..., ..., ..., f"10.13.3 in {LIB}"], {}),
        ("nv-tensorrt-rtx", DRIVER, 1, {}, [...], {}),
        (
            "cuda", None, 0, {}, ["none", "none", "none"],
            {
                "no NVIDIA driver (nvidia-smi, libcuda.so.1 not found)":
                    "a machine with an NVIDIA GPU (none is on the PCI bus here) and NVIDIA's driver 580 or newer",
                "no CUDA 13 (libcudart.so.13 not found)": PIP_CUDA,
                "no cuDNN 9 (libcudnn.so.9 not found)": PIP_CUDA,
            },
        ),
        (
            "cuda", None, 2, NEW | CUDNN, ["none", ..., ...],
            {"no NVIDIA driver (nvidia-smi, libcuda.so.1 not found)": "NVIDIA's driver 580 or newer"},
        ),
        (
            "cuda", Driver("535.104.05"), None, NEW | CUDNN, ["535.104.05", ..., ...],
            {"the NVIDIA driver 535.104.05 does not run CUDA 13": "NVIDIA's driver 580 or newer"},
        ),
        (
            "cuda", Driver("580.65.06", False), 1, NEW | CUDNN, ["580.65.06 without libcuda.so.1", ..., ...],
            {
                "the NVIDIA driver 580.65.06 is loaded, but libcuda.so.1 is not found":
                    "the driver's libraries (NVIDIA's driver 580 or newer; in a container: `--gpus all`)",
            },
        ),
        (
            "cuda", DRIVER, 1, OLD | CUDNN, [..., f"12.4.99 in {LIB}", ...],
            {"CUDA 12.4.99 is installed, and onnxruntime-gpu 1.31.1 wants 13": PIP_CUDA},
        ),
        ("cuda", DRIVER, 1, {n: OLD[n] + NEW[n] for n in NEW} | CUDNN, [..., f"13.0.96 in {LIB}", ...], {}),
        (
            "cuda", DRIVER, 1, {"cudart": NEW["cudart"], "cublas": OLD["cublas"]} | CUDNN,
            [..., f"13.0.96 in {LIB}, without libcublasLt.so.13, libcublas.so.13", ...],
            {"libcublasLt.so.13, libcublas.so.13 not found": PIP_CUDA},
        ),
        (
            "cuda", DRIVER, 1, ASIDE | CUDNN, [..., "13.0.96 in /usr/local/cuda-13.0/lib64", ...],
            {
                "CUDA 13.0.96 is in /usr/local/cuda-13.0/lib64, where the loader does not look":
                    "`export LD_LIBRARY_PATH=/usr/local/cuda-13.0/lib64`",
            },
        ),
        ("cuda", DRIVER, 1, NEW, [..., ..., "none"], {"no cuDNN 9 (libcudnn.so.9 not found)": PIP_CUDA}),
        (
            "tensorrt", DRIVER, 1, NEW | CUDNN | TENSORRT_11, [..., ..., ..., f"11.4.0 in {LIB}"],
            {"TensorRT 11.4.0 is installed, and onnxruntime-gpu 1.31.1 wants 10": PIP_TENSORRT},
        ),
        (
            "tensorrt", DRIVER, 1, NEW | CUDNN, [..., ..., ..., "none"],
            {"no TensorRT 10 (libnvinfer.so.10 not found)": PIP_TENSORRT},
        ),
    ],
    ids=[
        "all", "all with tensorrt", "rtx", "nothing", "no driver", "old driver", "driver without library", "cuda 12",
        "cuda 12 and 13", "no cublas", "not on the path", "no cudnn", "tensorrt 11", "no tensorrt",
    ],
)  # fmt: skip
def test_what_is_wanted_and_found(
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    driver: Driver | None,
    num_gpus: int | None,
    libraries: dict[str, tuple[Library, ...]],
    found: list[object],
    problems: dict[str, str],
) -> None:
    monkeypatch.setattr(nvidia, "wanted_versions", lambda: WANTED)
    monkeypatch.setattr(nvidia, "find_driver", lambda: driver)
    monkeypatch.setattr(nvidia, "find_gpus", lambda: num_gpus)
    monkeypatch.setattr(nvidia, "find_libraries", lambda: libraries)
    needs = nvidia.needs(provider)
    assert [need.what for need in needs] == ["NVIDIA driver", "CUDA", "cuDNN", "TensorRT"][: len(found)]
    assert [need.wanted for need in needs] == ["580 or newer", "13", "9", "10"][: len(found)]
    assert all(said in (..., need.found) for need, said in zip(needs, found, strict=True))
    assert {need.problem: need.step for need in needs if need.problem} == problems


@pytest.mark.parametrize(
    ("built", "provider_library", "wanted"),
    [
        ({}, None, nvidia.NEWEST),
        ({"cuda_version": None}, None, nvidia.NEWEST),
        (
            {"cuda_version": "12.8", "package_name": "onnxruntime-gpu"},
            b"\0libcublas.so.12\0libnvinfer.so.10\0libcudnn.so.9\0", Wanted("onnxruntime-gpu 1.24", 12, 9, 10),
        ),
        (
            {"cuda_version": "13.1", "package_name": "onnxruntime-gpu"}, b"nvinfer_11.dll\0cudnn64_10.dll",
            Wanted("onnxruntime-gpu 1.24", 13, 10, 11),
        ),
        ({"cuda_version": "14.0", "package_name": "x"}, None, Wanted("x 1.24", 14, 9, 10)),
    ],
)  # fmt: skip
def test_what_a_runtime_was_built_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: dict[str, str], provider_library: bytes | None,
    wanted: Wanted,
) -> None:  # fmt: skip
    (tmp_path / "capi").mkdir()
    if provider_library is not None:
        (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(provider_library)
    ort = SimpleNamespace(__version__="1.24", __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nvidia, "runtime", lambda: ort)
    monkeypatch.setattr(nvidia.importlib, "import_module", lambda name: SimpleNamespace(**built))
    assert nvidia.wanted_versions() == wanted


def test_libraries_are_found_in_packages_on_the_path_and_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if nvidia_files.sys.platform != "linux":
        pytest.skip("names of Linux")
    site, path, system = tmp_path / "site-packages", tmp_path / "path", tmp_path / "system"
    files = [
        site / "nvidia/cu13/lib/libcublas.so.13", site / "tensorrt_libs/libnvinfer.so.11", path / "libcudnn.so.9.5.1",
        system / "libcudart.so.12.4.99", site / "nvidia/cu13/lib/libcublasXt.so.13", path / "libcudnn.so",
    ]  # fmt: skip
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (path / "libcudnn.so.9").symlink_to("libcudnn.so.9.5.1")
    (system / "libcudart.so.12").symlink_to("libcudart.so.12.4.99")
    monkeypatch.setattr(nvidia_files.sys, "path", [str(tmp_path), str(site)])
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'none'}:{path}")
    cache = f"2 libs found\n\tlibcudart.so.12 (libc6,x86-64) => {system}/libcudart.so.12\n"
    monkeypatch.setattr(nvidia_files, "_output", lambda *command: cache if command[-1] == "-p" else "")
    monkeypatch.setattr(nvidia_files, "_PLACES", ())
    found = nvidia_files.find_libraries()
    assert {name: [lib.version for lib in libraries] for name, libraries in found.items()} == {
        "cublas": ["13"],
        "nvinfer": ["11"],
        "cudnn": ["9.5.1"],
        "cudart": ["12.4.99"],
    }
    assert found["cudart"][0].major == 12


def test_a_driver_is_found_by_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver, which is read first")
    said = {"nvidia-smi": "560.35.03, NVIDIA H100\n560.35.03, NVIDIA L4\n", "-p": "\tlibcuda.so.1 (libc6) => /x\n"}
    monkeypatch.setattr(nvidia_files, "_output", lambda *c: said.get(c[0]) or said.get(c[-1], ""))
    monkeypatch.setattr(nvidia_files.sys, "platform", "linux")
    assert nvidia_files.find_driver() == Driver("560.35.03", True, ("NVIDIA H100", "NVIDIA L4"))


@pytest.mark.parametrize("command", [("no-such-tool-here",), ("python3", "-c", "raise SystemExit(3)")])
def test_a_tool_that_is_absent_or_fails_says_nothing(command: tuple[str, ...]) -> None:
    assert nvidia_files._output(*command) == ""
