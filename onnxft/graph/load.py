"""Reading an ONNX file that may come from anybody: its external data is checked before anything opens it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from onnxft.errors import ModelError


def read_model(path: Path) -> ir.Model:
    """The graph of an ONNX file; what it refers to outside is neither checked nor opened.

    Raises:
        ModelError: the file is missing or holds no ONNX model.
    """
    return _deserialize(_parse(path), path)


def load_model(path: Path) -> ir.Model:
    """An ONNX model whose external data stays in its files, mapped into memory when it is read.

    Raises:
        ModelError: the file is missing or holds no ONNX model, or a tensor does not fit what it announces, or lies
            elsewhere than in a regular file with one name inside the folder of the model.
    """
    proto = _parse(path)
    folder = path.parent.resolve()
    messages = list(_messages(proto))
    for tensor in (m for m in messages if isinstance(m, onnx.TensorProto)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, folder, path)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != _num_bytes(tensor, path):
            raise ModelError(
                f"tensor '{tensor.name}' of '{path}' holds {len(tensor.raw_data)} bytes, its shape and type take "
                f"{_num_bytes(tensor, path)}: the file is damaged. Export or copy it again."
            )
    if sparse := next((m for m in messages if isinstance(m, onnx.SparseTensorProto)), None):
        raise ModelError(
            f"'{path}' has the sparse tensor '{sparse.values.name}', which onnxft does not read: store it dense."
        )
    model = _deserialize(proto, path)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, folder)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"the model file '{path}' does not exist.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as err:
        raise ModelError(f"'{path}' is not an ONNX model, or only a part of one: {err}.") from err
    # Many other files parse as a protobuf message whose every field is unknown.
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it has no graph, or names no opset.")
    return proto


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model: ir.Model = ir.from_proto(proto)
    except ir.serde.SerdeError as err:
        reason = str(err.__cause__ or err).splitlines()[0]
        raise ModelError(f"'{path}' is not a valid ONNX model: {reason}. Export it again.") from err
    return model


def _messages(message: Message) -> Iterator[Any]:
    """The message and all messages in it.

    So every tensor is found: initializers and attributes, dense and sparse, of all graphs, functions and training
    information. Which fields have tensors is left to the format, not to a list here.
    """
    yield message
    if isinstance(message, onnx.TensorProto):  # its fields are data
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _messages(part)


def _check_external(tensor: onnx.TensorProto, folder: Path, model: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"external data of tensor '{tensor.name}' in '{model}'"
    location = entries.get("location", "")
    place = folder / location
    if not location or "\0" in location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise ModelError(f"the {where} names the file {location!r}; it must be a path relative to the model.")
    if ".." in (*PurePosixPath(location).parts, *PureWindowsPath(location).parts):
        raise ModelError(f"the {where} names {location!r}, which leaves the folder of the model. {_PLAIN_FILES}")
    for parent in (*reversed(place.relative_to(folder).parents[:-1]), Path(location)):
        _check_plain(folder / parent, where, last=parent == Path(location))
    if not place.resolve().is_relative_to(folder):
        raise ModelError(f"the {where} lies in {str(place)!r}, outside the folder of the model. {_PLAIN_FILES}")
    expected = _num_bytes(tensor, model)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(expected)))
    except ValueError:
        raise ModelError(f"the {where} has an offset or length that is no number. Export the model again.") from None
    if offset < 0 or length != expected:
        raise ModelError(
            f"the {where} takes {length} bytes from {offset}, its shape and type take {expected}. Export it again."
        )
    size = place.stat().st_size
    if offset + length > size:
        raise ModelError(
            f"the {where} ends at byte {offset + length:,}, but '{location}' has {size:,}: it was only partly copied."
        )


_PLAIN_FILES = "onnxft reads external data only from plain files inside that folder: copy the file there."


def _check_plain(path: Path, where: str, *, last: bool) -> None:
    """ModelError unless a part of the way is a directory, and its end a regular file with one name."""
    try:
        found = os.lstat(path)
    except OSError:
        raise ModelError(f"the file '{path}' with the {where} is missing. Copy it beside the model.") from None
    if stat.S_ISLNK(found.st_mode):
        raise ModelError(f"the {where} is reached over '{path}', a symbolic link. {_PLAIN_FILES}")
    if last and (not stat.S_ISREG(found.st_mode) or found.st_nlink != 1):
        kind = "a hard link" if stat.S_ISREG(found.st_mode) else "no regular file"
        raise ModelError(f"the {where} lies in '{path}', {kind}. {_PLAIN_FILES}")


def _num_bytes(tensor: onnx.TensorProto, model: Path) -> int:
    """Bytes that the elements take, by shape and type."""
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = dtype.bitwidth
    except (ValueError, TypeError):
        raise ModelError(
            f"tensor '{tensor.name}' of '{model}' has the type {tensor.data_type}, which raw data cannot have."
        ) from None
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ModelError(f"tensor '{tensor.name}' of '{model}' has the shape {list(tensor.dims)}.")
        count *= dim
    return -(-count * bits // 8)
