"""Where TensorRT keeps the engines and timings of an artifact: in a folder `cache` of its directory.

An engine is code for the GPU, and an artifact may come from somebody else. So the folder bears a seal that only this
user can make for this place; a folder without it is emptied before use. `graph_cache` keeps its graphs beside it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
from pathlib import Path

from onnxft.errors import WriteError
from onnxft.files import write_atomically

FOLDER = "cache"
_SEAL = "seal"


def engine_cache(folder: Path | None) -> dict[str, str]:
    """Options of TensorRT that say where its caches are; without a folder none are kept.

    Raises:
        WriteError: the folder cannot be written.
    """
    if folder is None:
        return {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"}
    reason = "TensorRT keeps its engines there, unless --provider-option trt_engine_cache_enable=0."
    place = str(sealed(folder / FOLDER / "tensorrt", reason))
    return {"trt_engine_cache_path": place, "trt_timing_cache_path": place}


def sealed(folder: Path, reason: str) -> Path:
    """The folder, emptied unless this user made it here; a WriteError where it cannot be written ends with `reason`."""
    path = folder / _SEAL
    try:
        seal = hmac.new(user_secret(), os.fsencode(folder.resolve()), hashlib.sha256).hexdigest().encode()
        if folder.is_symlink() or folder.parent.is_symlink() or not path.is_file() or path.read_bytes() != seal:
            _remove(folder)
            folder.mkdir(parents=True)
            write_atomically(path, seal)
    except OSError as err:
        raise WriteError(folder, err.strerror or str(err), reason) from err
    return folder


def _remove(folder: Path) -> None:
    for place in (folder.parent, folder):
        if place.is_symlink():
            place.unlink()
    if folder.exists():
        shutil.rmtree(folder)


def user_secret() -> bytes:
    """Random bytes of this user, made when first asked for."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "onnxft" / "secret"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, secrets.token_bytes(32))
        path.chmod(0o600)
    return path.read_bytes()
