"""Files that are complete or absent: written beside their place, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxft.errors import ArtifactError, WriteError

_PART = ".part"


def write_atomically(path: Path, data: bytes | bytearray) -> None:
    """Write `data` to `path`; a crash leaves the old file or the new one, never a part."""
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to fill, which takes the place of `path` only when the block ends without error.

    Unless `durable` it is not waited for until it is on the disk, for what can be made anew and is checked when read.

    Raises:
        WriteError: the system cannot write it; what was at `path` is still there.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    if not durable:
        return
    with _writing(path, "The new file is in its place, but may be lost if the power fails."):
        _sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of `path` only when the block ends without error.

    What was at `path` is kept as `<path>.previous` until the new one is in place (`recover` finds it
    after a crash between the two renames).

    Raises:
        WriteError: the system cannot write it; what was at `path` is still there.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            yield beside
            for entry in (*beside.rglob("*"), beside):
                (_sync_directory if entry.is_dir() else _sync_file)(entry)
            previous = _previous(path)
            if path.exists():
                shutil.rmtree(previous, ignore_errors=True)
                path.replace(previous)
            try:
                beside.replace(path)
                _sync_directory(path.parent)
            except OSError:
                if path.exists():
                    path.replace(beside)
                if previous.exists():
                    previous.replace(path)
                raise
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file; WriteError where the system cannot, and then nothing was added."""
    with _writing(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):  # a device cannot be cut, and the first error is the one to tell
                file.truncate(size)
            raise


def is_part(path: Path) -> bool:
    """Whether a killed process left this half-written."""
    return path.name.startswith(".") and path.name.endswith(_PART)


def remove_parts(directory: Path) -> None:
    """Delete what a killed process left half-written in a directory that no other process writes to now."""
    with _writing(directory):
        for part in directory.rglob(f".*{_PART}"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, whole: str | None = None) -> Iterator[None]:
    """An OSError of the block, or a WriteError about a file within `path`, as a WriteError about `path`.

    Folders that were made for it are removed again where nothing came of it.
    """
    existed = path.exists()
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    except (OSError, WriteError) as err:
        for folder in missing:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()
        if isinstance(err, FileExistsError):
            reason = f"'{err.filename}' is a file, no folder"
        else:
            reason = err.reason if isinstance(err, WriteError) else err.strerror or str(err)
        kept = "What was there before is still there." if existed else "Nothing was left there."
        raise WriteError(path, reason, whole or kept) from err


def check_replaceable(path: Path, marker: str) -> None:
    """ArtifactError if writing to `path` would delete something else than a directory that holds `marker`.

    >>> check_replaceable(Path("no/such/directory"), "manifest.json")
    """
    if not path.name:
        raise ArtifactError(f"'{path}' cannot be replaced as a whole: name a directory inside it.")
    if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
        raise ArtifactError(f"'{path}' exists and holds no {marker}: it would be deleted. Choose a new directory.")


def recover(path: Path) -> Path:
    """The directory to read for `path`: itself, or its predecessor if a crash came between the renames."""
    if not path.exists() and _previous(path).exists():
        return _previous(path)
    return path


def weights_beside(model: Path) -> Path:
    """Where the weights of a model lie that are too large to be in it."""
    return model.with_name(f"{model.name}.data")


def location_beside(model: Path) -> str:
    """`weights_beside` as a model names it: always 300 characters, so that one can be put in the place of another."""
    name = weights_beside(model).name
    fill = 300 - len(name.encode())
    return "./" * (fill // 2) + "/" * (fill % 2) + name


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there; the rename itself is durable
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
