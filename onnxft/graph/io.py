"""Writing graphs and weights: weights once, in safetensors files that the graphs refer into by offset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.files import location_beside, weights_beside, write_atomically
from onnxft.manifest import ByteRange
from onnxft.tensor_file import TYPES, write_tensors

_PROTOBUF_LIMIT = 2**31 - 2**24
"""Bytes of weights that a file of at most 2 GiB holds beside its graph."""


def save_weights(path: Path, tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, ByteRange]:
    """Write a safetensors file, and return where the bytes of each tensor lie in it."""
    for name, tensor in tensors.items():
        if tensor.dtype.numpy().name not in TYPES:
            raise ModelError(f"'{name}' has the type {tensor.dtype}, which a weights file cannot hold.")
    return write_tensors(path, {name: tensor.numpy() for name, tensor in tensors.items()})


def save_model(model: ir.Model, path: Path, places: Mapping[str, ByteRange]) -> None:
    """Write a graph whose initializers named in `places` refer to the bytes there instead of holding them.

    `model` itself is not changed.
    """
    copy = _in_memory(model, places)
    for name, value in copy.graph.initializers.items():
        if name in places and value.const_value is not None:
            place, tensor = places[name], value.const_value
            value.const_value = ir.ExternalTensor(
                place.file, place.offset, place.length, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=name
            )
    write_atomically(path, _serialize(copy, path))


def save_inference(model: ir.Model, path: Path) -> dict[str, ByteRange]:
    """Write a graph with its weights, and return where the bytes of each float initializer lie.

    They are inside the file where that can hold them, else in a file beside it (`weights_beside`).
    """
    if _weight_bytes(model) < _PROTOBUF_LIMIT:
        data = _serialize(_in_memory(model, ()), path)
        write_atomically(path, data)
        return {name: ByteRange(path.name, start, length) for name, start, length in _raw_data(data)}
    initializers = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}
    weights = {
        name: t for name, t in initializers.items() if t.dtype.is_floating_point() and t.dtype.numpy().name in TYPES
    }
    places = save_weights(weights_beside(path), weights)
    save_model(model, path, {name: replace(place, file=location_beside(path)) for name, place in places.items()})
    return places


def _in_memory(model: ir.Model, external: Collection[str]) -> ir.Model:
    """A copy in which every tensor is raw data in memory, but for the initializers named in `external`."""
    copy: ir.Model = model.clone()
    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None and not (graph is copy.graph and name in external):
                value.const_value = _raw(value.const_value)
    for node in ir.traversal.RecursiveGraphIterator(copy.graph):
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes.add(ir.AttrTensor(attribute.name, _raw(attribute.value)))
    return copy


def _raw(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=tensor.name)


def _weight_bytes(model: ir.Model) -> int:
    """Bytes of the initializers that a file of the model would hold."""
    return sum(
        v.const_value.nbytes
        for graph in model.graphs()
        for v in graph.initializers.values()
        if v.const_value is not None
    )


def _serialize(model: ir.Model, path: Path) -> bytes:
    external = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    )
    size = _weight_bytes(model) - external
    if size >= _PROTOBUF_LIMIT:
        raise ModelError(f"'{path.name}' would hold {size:,} bytes of weights; a protobuf file holds less than 2 GiB.")
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
