"""The environment that providers are tried in: versions, runtime packages, and what is wrong with them."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

import onnxft
from onnxft.errors import ProviderError
from onnxft.runtime.nvidia_files import find_driver
from onnxft.runtime.providers import runtime

MINIMUM = (1, 24)
"""The oldest onnxruntime that is tested: it tells where nodes run."""
_HASHED_BYTES = 1 << 20
"""Files up to this size are compared by their hash too, larger ones by their size: they have up to 300 MB."""


@dataclass(frozen=True)
class Installation:
    """The environment that the diagnosis was made in."""

    versions: dict[str, str]
    """{package: version}, Python and the system included."""
    runtime_packages: dict[str, str]
    """{package: version} of all that install the module `onnxruntime`."""
    devices: tuple[str, ...]
    """The processor, and the GPUs that their driver's files name."""
    problems: tuple[str, ...]
    """What is wrong and how to mend it."""


def inspect_installation(path: Sequence[str] | None = None) -> Installation:
    """Versions, and what is wrong with the runtime packages; `path` as in `sys.path`, None for this environment's."""
    versions = {"onnxft": onnxft.__version__, "python": platform.python_version(), "system": platform.platform()}
    found = _runtimes(path)
    problems = [_together(found)] if len(found) > 1 else [problem for d in found for problem in _damaged(d)]
    if path is None and not problems:
        problems += _import_problem(found)
    driver = find_driver()
    return Installation(
        versions | {"numpy": np.__version__},
        {d.name: d.version for d in found},
        (processor(), *(driver.gpus if driver else ())),
        tuple(problems + [problem for d in found for problem in _old(d)]),
    )


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _runtimes(path: Sequence[str] | None) -> list[metadata.Distribution]:
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    named = {
        d.name: d
        for d in found
        if (d.name or "").lower().startswith("onnxruntime")
        # Plug-ins and tools bear the name too, but stand beside a runtime.
        and any(file.parts[:2] == ("onnxruntime", "__init__.py") for file in d.files or ())
    }
    return [named[name] for name in sorted(named)]


def _together(found: list[metadata.Distribution]) -> str:
    names = [d.name for d in found]
    return (
        f"{len(names)} runtimes are installed here ({', '.join(f'{d.name} {d.version}' for d in found)}). They all "
        "install the module 'onnxruntime' and overwrite each other's files: providers vanish, or the module breaks. "
        f"Remove all and install the one you need again: `pip uninstall -y {' '.join(names)}`, then "
        f"`pip install {names[0]}` or another. Use one environment for each runtime."
    )


def _damaged(package: metadata.Distribution) -> list[str]:
    """Files of the runtime that are not those of its package, as another runtime leaves them when it is removed."""
    missing, changed = [], []
    for file in package.files or ():
        if file.parts[:2] != ("onnxruntime", "capi") or file.suffix not in (".py", ".so", ".pyd", ".dll", ".dylib"):
            continue
        path = Path(str(package.locate_file(file)))
        if not path.is_file():
            missing.append(file.name)
        elif file.size not in (None, path.stat().st_size) or (
            file.hash is not None
            and path.stat().st_size <= _HASHED_BYTES
            and _digest(path, file.hash.mode) != file.hash.value
        ):
            changed.append(file.name)
    if not missing and not changed:
        return []
    parts = [f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''} {what}" for names, what in (
        (missing, "missing"), (changed, "of another package or changed")) if names]  # fmt: skip
    return [
        f"files of {package.name} {package.version} are not as they were installed: {'; '.join(parts)}. Another "
        "runtime package was installed over it or removed. Mend it: "
        f"`pip install --force-reinstall --no-deps {package.name}=={package.version}`."
    ]


def _digest(path: Path, mode: str) -> str:
    return base64.urlsafe_b64encode(hashlib.new(mode, path.read_bytes()).digest()).rstrip(b"=").decode()


def _import_problem(found: list[metadata.Distribution]) -> list[str]:
    try:
        runtime()
    except ProviderError as err:
        return [
            str(err) if found else "no runtime is installed: `pip install onnxft[cpu]`, or another provider's extra."
        ]
    return []


def _old(package: metadata.Distribution) -> list[str]:
    """A runtime under the minimum; that of onnxruntime-training, which ended, serves its own generator."""
    version = tuple(map(int, re.findall(r"\d+", package.version)[:2]))
    if version >= MINIMUM or package.name.lower().startswith("onnxruntime-training"):
        return []
    minimum = ".".join(map(str, MINIMUM))
    return [
        f"{package.name} {package.version} is older than {minimum}, the oldest that is tested, and cannot tell where "
        f"nodes run. Mend it: `pip install -U '{package.name}>={minimum}'`."
    ]
