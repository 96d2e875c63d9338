"""The inference model with new weights, written without the onnx package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError
from onnxft.files import location_beside, new_file, weights_beside, write_atomically
from onnxft.manifest import ByteRange, Manifest
from onnxft.runtime.adapters.merge import merged_weight
from onnxft.tensor_file import little_endian


def write_inference_model(directory: Path, manifest: Manifest, values: Arrays, path: Path) -> None:
    """Copy the inference model of an artifact to `path` with new `values` at their recorded byte ranges.

    `values` are all trained parameters, and the running statistics that the inference model reads. Adapters are merged
    into the weights that they adapt, which are read from the artifact's own model.

    Where its weights lie in a file beside it, so do those of the copy: `model.onnx.data` beside `model.onnx`.

    Raises:
        ArtifactError: a parameter has no range, or its bytes do not have the recorded length.
    """
    source = directory / manifest.graph("infer").file
    unread = [b.name for b in manifest.buffers if b.inference is None]
    added = {p.name: p.merge.target for p in manifest.parameters if p.merge is not None}
    read = [t for t in manifest.weights if t.name not in unread]
    places = {added.get(t.name, t.name): _place(t.name, t.inference, source, manifest) for t in read}
    values = {**values, **_merged(directory, manifest, values, places)}
    if all(place.file == source.name for place in places.values()):
        with new_file(path) as file:
            _copy(source, file, places, values)
        return
    with new_file(weights_beside(path)) as file:
        _copy(weights_beside(source), file, places, values)
    old, new = (location_beside(p).encode() for p in (source, path))
    write_atomically(path, source.read_bytes().replace(old, new))


def _merged(directory: Path, manifest: Manifest, values: Arrays, places: Mapping[str, ByteRange]) -> dict[str, Array]:
    """{adapted weight: its value with the adapter merged into it}"""
    found = {}
    for target, (a, b) in manifest.adapters.items():
        assert a.merge is not None
        place, dtype = places[target], np.dtype(a.dtype).newbyteorder("<")
        with (directory / place.file.rpartition("/")[2]).open("rb") as file:
            file.seek(place.offset)
            base = np.frombuffer(file.read(place.length), dtype).reshape(a.merge.target_shape)
        found[target] = merged_weight(base.astype(a.dtype), values[a.name], values[b.name], a.merge)
    return found


def _place(name: str, place: ByteRange | None, source: Path, manifest: Manifest) -> ByteRange:
    if place is None or place.file not in (source.name, weights_beside(source).name):
        raise ArtifactError(f"'{name}' has no place in the inference model of '{manifest.name}'. Export it again.")
    return place


def _copy(source: Path, target: BinaryIO, places: Mapping[str, ByteRange], values: Arrays) -> None:
    """Copy a file and put the bytes of each value in their place."""
    with source.open("rb") as file:
        shutil.copyfileobj(file, target)
    size = target.tell()
    for name, place in places.items():
        value = values[name]
        if value.nbytes != place.length or place.offset + place.length > size:
            raise ArtifactError(f"'{name}' has {value.nbytes} bytes, its place in {place.file} has {place.length}.")
        target.seek(place.offset)
        target.write(little_endian(value))
