"""Data in memory: named arrays whose first dimension counts rows."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxft.arrays import Array
from onnxft.data.dataset import Batch
from onnxft.errors import DataError
from onnxft.manifest import LABELS, Manifest
from onnxft.memory import physical_memory
from onnxft.runtime.batches import check_batch
from onnxft.runtime.evaluation import data_ports

_BLOCK = 1024


@dataclass(frozen=True)
class ArrayDataset:
    """Inputs under the names of the exported graph, `labels` where the loss takes some, and optionally
    `sample_weights`, each (rows, ...).
    """

    arrays: Mapping[str, Array]
    source: str = "the data"
    """Where it comes from, for messages."""

    def __post_init__(self) -> None:
        """DataError unless every array has the same, positive number of rows."""
        if not self.arrays:
            raise DataError(f"{self.source} holds no array. It needs every model input and '{LABELS}'.")
        for name, array in self.arrays.items():
            if array.ndim == 0:
                raise DataError(f"{self.source}: '{name}' is a single value; its first dimension must count rows.")
        rows = {name: len(array) for name, array in self.arrays.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"'{name}' {count}" for name, count in rows.items())
            raise DataError(f"{self.source}: the arrays must have equally many rows, but have {counts}.")
        if len(self) == 0:
            raise DataError(f"{self.source}: '{next(iter(rows))}' has 0 rows. At least one is needed.")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def labels(self) -> Array | None:
        """The array `labels`."""
        return self.arrays.get(LABELS)

    @property
    def lengths(self) -> None:
        """All rows have one shape."""
        return None

    @property
    def classes(self) -> tuple[str, ...]:
        """Numbers have no names."""
        return ()

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """The rows `index`, as they are."""
        return {name: array[index] for name, array in self.arrays.items()}

    @classmethod
    def load(cls, path: Path) -> ArrayDataset:
        """Read an `.npz` file, without pickle. All of it is in memory then: arrays of an archive cannot be mapped.

        Raises:
            DataError: the file is missing, is no `.npz`, holds Python objects, or more than the memory does.
        """
        if path.suffix != ".npz":
            raise DataError(
                f"'{path}' is not an .npz file. Write one with numpy.savez: inputs by name, and '{LABELS}'."
            )
        try:
            # Opened here, because numpy leaves a damaged archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                _require_memory(path, sum(member.file_size for member in archive.zip.infolist()))
                return cls({name: archive[name] for name in archive.files}, f"'{path}'")
        except FileNotFoundError:
            raise DataError(f"there is no data file '{path}'.") from None
        except (TypeError, ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as err:
            raise DataError(
                f"'{path}' cannot be read as .npz: {err}. Write it with numpy.savez, from arrays of numbers."
            ) from err

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Check every row, a block at a time; batches are converted to the model's types when they are used.

        `sizes` are those of the symbolic dimensions in the session.

        Raises:
            DataError: an array is missing, unknown, of another kind or shape, or holds a label outside the classes,
                NaN or infinity. Names the array, the index and the value.
        """
        ports = data_ports(manifest)
        for start in range(0, len(self), _BLOCK):
            block = {name: array[start : start + _BLOCK] for name, array in self.arrays.items()}
            try:
                check_batch(block, ports, manifest.loss, sizes, first_row=start)
            except DataError as err:
                raise DataError(f"{self.source}: {err}") from err

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _require_memory(path: Path, size: int) -> None:
    """DataError where the arrays, in bytes, are more than the memory: a small archive may unpack to anything."""
    memory = physical_memory()
    if memory is not None and size > memory:
        raise DataError(
            f"'{path}' unpacks to {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:.1f} GB of memory. "
            "Divide it, or read it in parts by code (module:function)."
        )
