"""Where features are kept: in memory, or in a folder of .npy files that are mapped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxft.arrays import Array
from onnxft.data.dataset import Batch, Dataset
from onnxft.data.stream import Stream
from onnxft.files import new_directory, sha256, write_atomically
from onnxft.manifest import Manifest
from onnxft.memory import physical_memory, size_of
from onnxft.runtime.artifact import feature_bytes
from onnxft.training.config import TrainConfig

_RECORD = "features.json"
_PART_OF_MEMORY = 4
"""Features may take a quarter of this machine's memory unless a budget is given."""


def bytes_in_memory(manifest: Manifest, config: TrainConfig, data: Dataset | Stream) -> int:
    """What the kept features of a data set will take of this process; 0 where they are on disk or not kept."""
    if not manifest.features or isinstance(data, Stream) or config.buckets or config.cache in ("off", "disk"):
        return 0
    size = len(data) * feature_bytes(manifest)
    return size if size <= limit(config) or config.cache == "memory" else 0


def limit(config: TrainConfig) -> int:
    """Bytes that the features of a data set may take in memory."""
    given = config.cache_memory
    return (physical_memory() or 0) // _PART_OF_MEMORY if given is None else size_of(given)


def in_memory(batches: Iterable[Batch], like: Batch, rows: int) -> dict[str, Array]:
    """{name: (rows, ...) array} of batches that follow each other; `like` is one of them."""
    arrays = {name: np.empty((rows, *array.shape[1:]), array.dtype) for name, array in like.items()}
    start = 0
    for batch in batches:
        stop = start + len(next(iter(batch.values())))
        for name, array in batch.items():
            arrays[name][start:stop] = array
        start = stop
    return arrays


def on_disk(batches: Iterable[Batch], like: Batch, rows: int, folder: Path, key: str) -> dict[str, Array]:
    """The same, mapped from files of `folder`, which appears complete or not at all.

    They are written, not mapped to be filled: on a full disk a write is an error, and a map ends the process.

    Raises:
        WriteError: the system cannot write them.
    """
    files = {name: f"{number}.npy" for number, name in enumerate(like)}
    with new_directory(folder) as beside:
        opened = {name: (beside / file).open("wb") for name, file in files.items()}
        try:
            for name, array in like.items():
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(opened[name], header)
            for batch in batches:
                for name, array in batch.items():
                    opened[name].write(np.ascontiguousarray(array).tobytes())
        finally:
            for file in opened.values():
                file.close()
        hashes = {file: sha256(beside / file) for file in files.values()}
        record = {"key": key, "files": files, "hashes": hashes}
        write_atomically(beside / _RECORD, json.dumps(record, indent=1).encode())
    return _mapped(folder, files)


def found(folder: Path, key: str) -> dict[str, Array] | None:
    """What `on_disk` has left in `folder` under the same key, whole; None where there is no such thing."""
    try:
        said = json.loads((folder / _RECORD).read_bytes())
        whole = said["key"] == key and all(sha256(folder / file) == digest for file, digest in said["hashes"].items())
    except (OSError, ValueError):  # not there, or damaged
        return None
    return _mapped(folder, said["files"]) if whole else None


def _mapped(folder: Path, files: Mapping[str, str]) -> dict[str, Array]:
    return {name: np.load(folder / file, mmap_mode="r") for name, file in files.items()}
