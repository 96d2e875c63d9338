"""Safetensors files, written tensor by tensor: a writer that is given bytes has all weights in memory once more."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxft.files import new_file
from onnxft.manifest import ByteRange

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""{numpy name of an element type: that of the format}"""


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> dict[str, ByteRange]:
    """Write a file of tensors whose types are among `TYPES`, and return where the bytes of each lie in it.

    Raises:
        WriteError: the system cannot write it; what was at `path` is still there.
    """
    # The format wants each tensor aligned to its element, so those with large elements come first.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, dict[str, object]] = {}
    position = 0
    for name in names:
        tensor, start = tensors[name], position
        position += tensor.nbytes
        header[name] = {
            "dtype": TYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": (start, position),
        }
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    places = {}
    with new_file(path) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            places[name] = ByteRange(path.name, file.tell(), tensors[name].nbytes)
            file.write(little_endian(tensors[name]))
    return places


def little_endian(value: NDArray[Any]) -> memoryview:
    """The bytes of an array in the order of files, without a copy where they lie so in memory."""
    ordered = value.astype(value.dtype.newbyteorder("<"), order="C", copy=False)
    return ordered.reshape(-1).view(np.uint8).data
