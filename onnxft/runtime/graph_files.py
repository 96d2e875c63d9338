"""What a graph file reads outside itself, found without the onnx package before the runtime opens anything.

A manifest and its hashes come from whoever made the artifact, so a graph that fits its hash may still name any file.
Only the protobuf fields that lead to tensors and nodes are followed; everything else is skipped unread. Most nodes hold
none of the words that a reference to a file needs, and are not walked through.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from onnxft.errors import ArtifactError
from onnxft.runtime.protobuf import Message, reading

MESSAGES: dict[str, dict[int, str]] = {
    # message of onnx.proto: {number of a field: its message}
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}  # fmt: skip
_TEXTS = {"NodeProto": {4: "op_type"}, "TensorProto": {8: "name"}, "StringStringEntryProto": {1: "key", 2: "value"}}
_READS_FILES = ("EPContext",)
"""Operators of the runtime that open a file which an attribute names."""
_LOCATION = "location"
"""Key under which a tensor names its file."""
_WORDS = tuple(word.encode() for word in (_LOCATION, *_READS_FILES))
"""One of these stands in every node that makes the runtime read a file."""
_MAX_DEPTH = 64


def check_graph(path: Path, beside: Collection[str]) -> None:
    """Check one graph of an artifact, whose folder holds the (hashed) files `beside`.

    Raises:
        ArtifactError: the file is no ONNX model, or would make the runtime read another file than one of `beside`.
    """
    with reading(path) as model:
        _check(model, path, beside)


def _check(root: Message, path: Path, beside: Collection[str]) -> None:
    waiting = [(root, "ModelProto", 0)]
    while waiting:
        part, message, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise IndexError(f"its messages are nested more than {_MAX_DEPTH} deep")
        texts: dict[str, str] = {}
        entries: dict[str, str] = {}
        for number, contents in part.fields():
            inner = MESSAGES[message].get(number)
            if number in _TEXTS.get(message, {}):
                texts[_TEXTS[message][number]] = contents.text()
            elif inner == "StringStringEntryProto":
                pair = {_TEXTS[inner][n]: p.text() for n, p in contents.fields() if n in _TEXTS[inner]}
                entries[pair.get("key", "")] = pair.get("value", "")
            elif inner is not None and (inner != "NodeProto" or contents.holds(_WORDS)):
                waiting.append((contents, inner, depth + 1))
        if message == "TensorProto" and entries:
            _check_location(entries.get(_LOCATION, ""), texts.get("name", ""), path, beside)
        if texts.get("op_type") in _READS_FILES:
            raise ArtifactError(
                f"'{path}' has the operator '{texts['op_type']}', which makes the runtime read other files. "
                "Do not use this artifact unless you know where it comes from; export it again."
            )


def _check_location(location: str, tensor: str, path: Path, beside: Collection[str]) -> None:
    # Parts of "." are a writer's fill (`files.location_beside`) and lead nowhere.
    if "\\" in location or location.startswith("/") or str(PurePosixPath(location)) not in beside:
        raise ArtifactError(
            f"tensor {tensor!r} of '{path}' lies in {location!r}, which is no file that the manifest lists. "
            "Do not use this artifact unless you know where it comes from; export it again."
        )
