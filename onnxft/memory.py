"""Memory of this process and this machine, as the system tells it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from onnxft.errors import ConfigError


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not tell (only Linux does, as a file)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux keeps ru_maxrss over exec: a worker would report the peak of the process that started it.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int | None:
    """RAM of this machine in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size_of(text: int | str, name: str = "the size") -> int:
    """Bytes of a size as options give it: `512MB`, `1.5 GiB`; a bare number counts MiB.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-zA-Z]*)", str(text).strip())
    scale = _UNITS.get((found[2] or "MiB").lower()) if found else None
    if found is None or scale is None:
        raise ConfigError(f"{name} is {text}, it must be a size at least 0: 512MB, 1.5GiB or, in MiB, 512.")
    return int(float(found[1]) * scale)


def size_text(size: int) -> str:
    """A number of bytes in the unit that fits: `512 B`, `1.5 kB`, `98.2 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
