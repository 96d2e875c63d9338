"""The inference model with new weights, written without the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxft.errors import ArtifactError
from onnxft.files import write_atomically
from onnxft.manifest import Manifest
from onnxft.runtime.engine import Arrays


def write_inference_model(directory: Path, manifest: Manifest, parameters: Arrays, path: Path) -> None:
    """Copy the inference model of an artifact to `path` with `parameters` at their recorded byte ranges.

    Raises:
        ArtifactError: a parameter has no range, or its bytes do not have the recorded length.
    """
    source = directory / manifest.graph("infer").file
    data = bytearray(source.read_bytes())
    for parameter in manifest.parameters:
        where = parameter.inference
        if where is None or where.file != source.name:
            raise ArtifactError(
                f"'{parameter.name}' has no place in the inference model of '{manifest.name}'. Export it again."
            )
        value = np.ascontiguousarray(parameters[parameter.name])
        raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
        if len(raw) != where.length or where.offset + where.length > len(data):
            raise ArtifactError(
                f"'{parameter.name}' has {len(raw)} bytes, its place in {source.name} has {where.length}."
            )
        data[where.offset : where.offset + where.length] = raw
    write_atomically(path, data)
