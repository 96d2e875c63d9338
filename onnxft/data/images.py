"""A folder of pictures with one sub-folder for each class: `cells/good/1.png`, `cells/broken/2.jpg`.

Formats are those that Pillow decodes without other programs. Hidden files are skipped; every other file must be a
picture. Sub-folders of a class are read, too. Pictures are decoded when a batch needs them, by Pillow, which releases
the interpreter's lock; small ones are kept for the next epoch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.augment import Augment
from onnxft.data.dataset import Batch
from onnxft.data.decode import decode, header, picture_suffixes
from onnxft.data.labels import class_names
from onnxft.data.options import DataOptions
from onnxft.data.preprocess import picture_port, preprocess_for
from onnxft.errors import DataError
from onnxft.files import sha256
from onnxft.manifest import LABELS, Manifest
from onnxft.memory import physical_memory
from onnxft.runtime.batches import check_batch
from onnxft.runtime.evaluation import data_ports

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST_MEMORY = 1 << 30
"""Bytes of decoded pictures that are kept at most; an eighth of the machine's memory where that is less."""


class Pictures:
    """Picture files as rows of one model input."""

    def __init__(
        self, files: Sequence[Path], manifest: Manifest, options: DataOptions, name: str | None = None
    ) -> None:
        """Hold the files; `name` is that of the input, where the model has several.

        Raises:
            ConfigError: an option is unknown or does not fit the model.
        """
        self.files = files
        self._manifest, self._given, self._name = manifest, options.preprocess, name
        self._augment = Augment.make(options.augment, options.seed)
        self._kept = _Kept(_memory_limit())
        preprocess_for(manifest, self._given, name=name)

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Array:
        """(n, ...) of the files `index`, changed as in the epoch."""
        preprocess = preprocess_for(self._manifest, self._given, sizes, self._name)
        changed = epoch is not None and bool(self._augment.names)
        whole = changed and self._augment.reads_whole

        def load(i: int) -> Image:
            picture = decode(self.files[i], preprocess.mode)
            return picture if whole else preprocess.sized_of(picture, f"'{self.files[i]}'")

        bytes_ = []
        for i in index.tolist():
            picture = self._kept.get((i, None if whole else preprocess.size), partial(load, i))
            if changed and epoch is not None:
                picture = self._augment(picture, preprocess, epoch=epoch, row=i)
            bytes_.append(np.asarray(picture))
        return preprocess.arrays(np.stack(bytes_))

    def check(self, sizes: Mapping[str, int]) -> None:
        """Open the header of every picture, and decode the first."""
        preprocess_for(self._manifest, self._given, sizes, self._name)
        for file in self.files:
            header(file)
        self.read(np.array([0]), sizes=sizes, epoch=None)

    def update(self, digest: Any) -> None:
        """Add the bytes of the files to a hash."""
        for file in self.files:
            digest.update(f"{file.stat().st_size} {sha256(file)};".encode())


class ImageFolder:
    """Rows of an image folder, in the order of their paths."""

    def __init__(self, folder: Path, manifest: Manifest, options: DataOptions) -> None:
        """List the files; see `open_folder`."""
        self.source = f"'{folder}'"
        _require_class_labels(manifest, self.source)
        try:
            found = {name: list(_pictures(folder / name, folder.resolve())) for name in _class_folders(folder)}
        except OSError as err:
            raise DataError(f"{self.source} cannot be read: {err}.") from err
        for name, files in found.items():
            if not files:
                raise DataError(f"the class folder '{folder / name}' holds no picture: fill it or remove it.")
        self.classes = class_names(found, options.classes, manifest, self.source)
        self._folder = folder
        self._rows = Pictures([f for name in sorted(found) for f in found[name]], manifest, options)
        numbers = [self.classes.index(name) for name in sorted(found) for _ in found[name]]
        self.labels: Array | None = np.array(numbers, np.int64)
        self._input = picture_port(manifest).name

    def __len__(self) -> int:
        return len(self._rows.files)

    @property
    def lengths(self) -> None:
        """All rows have one shape."""
        return None

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """The pictures `index` as the model takes them, with their classes."""
        assert self.labels is not None
        return {self._input: self._rows.read(index, sizes=sizes, epoch=epoch), LABELS: self.labels[index]}

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Open the header of every picture and compare the first row with the model."""
        self._rows.check(sizes)
        try:
            check_batch(self.read(np.array([0]), sizes=sizes, epoch=None), data_ports(manifest), manifest.loss, sizes)
        except DataError as err:
            raise DataError(f"{self.source}: {err}") from err

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of names, sizes and bytes of the files."""
        digest = hashlib.sha256()
        for file in self._rows.files:
            digest.update(f"{file.relative_to(self._folder).as_posix()};".encode(errors="surrogateescape"))
        self._rows.update(digest)
        return digest.hexdigest()


def open_folder(path: Path, manifest: Manifest, options: DataOptions) -> ImageFolder:
    """The pictures of a folder.

    Raises:
        DataError: the folder is missing or holds no class folders, a file in it is no picture, a link leads outside,
            its classes are not those of the model, or Pillow is missing.
        ConfigError: a preprocess key or an augmentation is unknown or does not fit the model.
    """
    return ImageFolder(path, manifest, options)


def _require_class_labels(manifest: Manifest, source: str) -> None:
    labels = [p for p in data_ports(manifest) if p.role == "label"]
    if manifest.loss.kind != "cross_entropy" or any(len(p.shape) != 1 for p in labels):
        raise DataError(
            f"{source}: the folders of a picture name its class, but '{manifest.name}' is trained with other labels "
            f"({manifest.loss.kind}). Use a table (CSV, JSONL) with a column of paths, or .npz."
        )


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'.")
    entries = [e for e in sorted(folder.iterdir()) if not e.name.startswith(".")]
    for entry in entries:
        if not entry.is_dir():
            raise DataError(
                f"'{entry}' lies beside the class folders of '{folder}', which hold one sub-folder for each class: "
                "move it into one, or away."
            )
    if not entries:
        raise DataError(f"'{folder}' holds no class folders: one sub-folder with pictures for each class is needed.")
    return [e.name for e in entries]


def _pictures(folder: Path, root: Path) -> Iterator[Path]:
    """The files of a class, in the order of their paths."""
    inside(folder, root)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        inside(entry, root)
        if entry.is_dir():
            if entry.is_symlink():
                raise DataError(f"'{entry}' is a link to a folder, which may lead in a circle: move the folder here.")
            yield from _pictures(entry, root)
        elif not entry.is_file():
            raise DataError(f"'{entry}' is no regular file: move it away.")
        elif entry.suffix.lower() in picture_suffixes():
            yield entry
        else:
            raise DataError(f"'{entry}' lies among the pictures and has the suffix of none: move it away.")


def inside(path: Path, root: Path) -> None:
    """DataError if `path` leads out of the folder `root` (resolved)."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as err:  # links that lead in a circle
        raise DataError(f"'{path}' cannot be followed: {err}.") from err
    if not resolved.is_relative_to(root):
        raise DataError(f"'{path}' leads out of the data folder '{root}', and is not read.")


class _Kept:
    """Pictures that were made once, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._held: dict[Any, Image] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Image]) -> Image:
        """The picture of a key."""
        if (held := self._held.get(key)) is not None:
            return held
        picture = make()
        size = picture.width * picture.height * (4 if picture.mode == "RGB" else 1)  # Pillow pads RGB to 4 bytes
        with self._lock:
            if size <= self._room and key not in self._held:
                self._held[key] = picture
                self._room -= size
        return picture


@cache
def _memory_limit() -> int:
    memory = physical_memory()
    return _LARGEST_MEMORY // 8 if memory is None else min(_LARGEST_MEMORY, memory // 8)
