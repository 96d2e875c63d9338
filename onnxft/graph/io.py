"""Writing graphs and weights: weights once, in safetensors files that the graphs refer into by offset."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
from safetensors.numpy import save

from onnxft.errors import ModelError
from onnxft.files import write_atomically
from onnxft.manifest import ByteRange

_PROTOBUF_LIMIT = 2**31 - 1


def save_weights(path: Path, tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, ByteRange]:
    """Write a safetensors file and return where each tensor's bytes lie in it."""
    data = save({name: tensor.numpy() for name, tensor in tensors.items()})
    write_atomically(path, data)
    (header_size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_size])
    start = 8 + header_size
    return {
        name: ByteRange(
            path.name, start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def save_model(model: ir.Model, path: Path, places: Mapping[str, ByteRange]) -> None:
    """Write a graph whose initializers named in `places` refer to the bytes there instead of holding them.

    `model` itself is not changed.
    """
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        if name in places and value.const_value is not None:
            place, tensor = places[name], value.const_value
            value.const_value = ir.ExternalTensor(
                place.file, place.offset, place.length, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=name
            )
    write_atomically(path, _serialize(copy, path))


def save_embedded(model: ir.Model, path: Path) -> dict[str, ByteRange]:
    """Write a graph with its weights inside, and return where each initializer's bytes lie in the file."""
    data = _serialize(model, path)
    write_atomically(path, data)
    return {name: ByteRange(path.name, start, length) for name, start, length in _raw_data(data)}


def _serialize(model: ir.Model, path: Path) -> bytes:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    )
    if size - external >= _PROTOBUF_LIMIT:
        raise ModelError(
            f"'{path.name}' would hold {size - external:,} bytes of weights; a protobuf file holds less than 2 GiB."
        )
    return bytes(ir.to_proto(model).SerializeToString())


# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.name and .raw_data.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9


def _raw_data(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, length) of the raw data of each initializer of a serialized model."""
    for field, graph_start, graph_end in _fields(data, 0, len(data)):
        if field != _GRAPH:
            continue
        for field, start, end in _fields(data, graph_start, graph_end):
            if field != _INITIALIZER:
                continue
            parts = {f: (s, e) for f, s, e in _fields(data, start, end) if f in (_NAME, _RAW_DATA)}
            if _RAW_DATA in parts:
                (name_start, name_end), (raw_start, raw_end) = parts[_NAME], parts[_RAW_DATA]
                yield data[name_start:name_end].decode(), raw_start, raw_end - raw_start


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the length-delimited fields of a protobuf message; other fields are passed over."""
    position = start
    while position < end:
        key, position = _varint(data, position)
        match key & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(data, position)
                yield key >> 3, position, position + length
                position += length
            case 5:
                position += 4
            case kind:
                raise ModelError(f"unknown protobuf wire type {kind} in a model just written: please report this.")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
