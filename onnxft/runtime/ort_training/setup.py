"""Making the environment of onnxruntime-training: a virtual environment of its own, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnxft.errors import ConfigError, ProviderError, WriteError
from onnxft.files import write_atomically
from onnxft.ort_training_environment import RECORD, base_versions, interpreter_of, read_record, requirements
from onnxft.runtime.isolate import shortened
from onnxft.runtime.ort_training import first_steps
from onnxft.runtime.ort_training.process import CallError, WorkerProcess

Progress = Callable[[str], None]


def make_environment(place: Path, *, base: str | None = None, cuda: bool = False, progress: Progress = print) -> None:
    """Make the environment at `place`, and train a small network in it; one that is there and works is left as it is.

    Args:
        place: of the environment. One that an interrupted call left, or that no longer works, is made anew.
        base: interpreter to make it from; None: this one or one on PATH, of a version that the packages are built for.
        cuda: the package for CUDA 11.8 in the place of the one for the CPU.
        progress: is told what is being done.

    Raises:
        ConfigError: `place` holds something else, or an environment with the other package.
        ProviderError: there is no interpreter for it, the packages cannot be installed, or do not work.
        WriteError: the system cannot write there. Whatever is raised, nothing half-made is left.
    """
    python = interpreter_of(place)
    if _is_complete(place, cuda=cuda):
        try:
            progress(f"'{place}' is there already; trying it")
            check_environment(str(python), progress, cuda=cuda)
            return
        except ProviderError as err:
            progress(f"it does not work any more, so it is made anew: {err}")
    origin = find_base(base, cuda=cuda)
    with _whole_or_not_at_all(place):
        progress(f"making '{place}' with {origin}")
        _run([origin, "-m", "venv", str(place.resolve())], "the virtual environment cannot be made", lambda line: None)
        _install(python, requirements(cuda=cuda), progress)
        check_environment(str(python), progress, cuda=cuda)
        record = {"complete": True, "packages": requirements(cuda=cuda), "base": origin}
        write_atomically(place / RECORD, json.dumps(record, indent=1).encode())


def find_base(base: str | None = None, *, cuda: bool = False) -> str:
    """An interpreter to make the environment from; ProviderError where there is none that its packages are built for.

    `base` comes first, then this interpreter, then those on PATH, the newest version first.
    """
    versions = base_versions(cuda=cuda)
    wanted = " or ".join(f"{major}.{minor}" for major, minor in versions)
    if base is not None:
        found = shutil.which(base)
        version = found and _version_of(found)
        if not found or version not in versions:
            what = f"is Python {version[0]}.{version[1]}" if version else "does not run as a Python interpreter"
            raise ProviderError(
                f"'{base}' {what}, and the packages of onnxruntime-training are built for Python {wanted}. "
                "Give the path of such an interpreter with --base."
            )
        return found
    names = [f"python{major}.{minor}" for major, minor in reversed(versions)]
    for candidate in (sys.executable, *filter(None, map(shutil.which, names))):
        if _version_of(candidate) in versions:
            return candidate
    raise ProviderError(
        f"the packages of onnxruntime-training are built for Python {wanted}; this is Python "
        f"{sys.version_info.major}.{sys.version_info.minor}, and PATH has none of {', '.join(names)} that runs. "
        "Install one, or give its path with --base."
    )


def check_environment(python: str, progress: Progress, *, cuda: bool = False) -> None:
    """Generate the graphs of a small network in the environment and train it in the worker process.

    Raises:
        ProviderError: something there does not work.
    """
    progress("generating and training a small network")
    with tempfile.TemporaryDirectory(prefix="onnxft-setup-") as folder:
        libraries = " (its package needs CUDA 11.8 and cuDNN 8 on this machine)" if cuda else ""
        problem = f"'{python}' cannot generate graphs{libraries}"
        _run([python, "-I", first_steps.__file__, folder], problem, lambda line: None)
        worker = WorkerProcess(python)
        try:
            losses = first_steps.train(worker.call, Path(folder), device="cuda" if cuda else "cpu")
        except CallError as err:
            raise ProviderError(f"the onnxruntime-training of '{python}' cannot train: {err}.") from err
        finally:
            worker.close()
    if not losses[-1] < losses[0]:
        raise ProviderError(f"the onnxruntime-training of '{python}' trains wrongly: its losses are {losses}.")
    progress(f"onnxruntime-training {worker.version} works, on {' and '.join(worker.devices)}")


def _is_complete(place: Path, *, cuda: bool) -> bool:
    """ConfigError where something stands at `place` that this command must not replace."""
    record = read_record(place)
    if place.exists() and record is None and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"'{place}' exists and is no environment that this command made. Choose another --at.")
    if record is None or not record.get("complete"):
        return False
    found, wanted = list(record.get("packages", [])), list(requirements(cuda=cuda))
    if found != wanted:
        raise ConfigError(
            f"'{place}' is an environment with {' and '.join(found)}, not {' and '.join(wanted)}. Choose another --at, "
            "or delete it."
        )
    return True


@contextmanager
def _whole_or_not_at_all(place: Path) -> Iterator[None]:
    """A virtual environment cannot be moved, so it is made in its place: marked as incomplete, removed on failure."""
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        (place / RECORD).write_text(json.dumps({"complete": False}), encoding="utf-8")
        yield
    except BaseException as err:
        shutil.rmtree(place, ignore_errors=True)
        for folder in missing[1:]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(err, OSError):
            raise WriteError(place, err.strerror or str(err), "Nothing was left there.") from err
        raise


def _version_of(python: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that can make a virtual environment; None of what does not run as one."""
    code = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60
        )
        major, minor = map(int, done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return major, minor


def _install(python: Path, packages: Sequence[str], progress: Progress) -> None:
    uv = shutil.which("uv")
    install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    progress(f"installing {' and '.join(packages)} with {'uv' if uv else 'pip'}")
    _run(
        [*install, *packages],
        f"{' and '.join(packages)} cannot be installed (the wheels are for Linux on x86-64)",
        lambda line: progress(f"  {line}"),
    )


def _run(command: Sequence[str], problem: str, said: Progress) -> None:
    """Run a command and pass on each line that it prints; ProviderError with the last one where it fails."""
    last = ""
    # Settings of this interpreter's environment must not reach the other.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            errors="replace", env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    last = shortened(line.strip())
                    said(last)
    except OSError as err:
        raise ProviderError(f"{problem}: '{command[0]}' cannot be started ({err.strerror}).") from err
    if process.returncode != 0:
        raise ProviderError(f"{problem}: {last or f'exit code {process.returncode}'}. Nothing was left behind.")
