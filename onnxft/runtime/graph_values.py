"""Nodes and tensor sizes of a graph file, read without the onnx package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxft.errors import ArtifactError
from onnxft.manifest import dimension_size
from onnxft.runtime.protobuf import Message, reading

ITEM_BYTES = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 8: 16, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2,
    17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1,
}  # fmt: skip
"""{element type of onnx.proto: bytes of an element}; those of 4 bits count a byte."""
_MAX_DEPTH = 16
"""Of graphs within graphs."""


@dataclass(frozen=True)
class Kind:
    """Element size and shape of a value; dimensions are numbers or symbolic, None where the file does not say."""

    item_bytes: int
    shape: tuple[int | str | None, ...] | None

    def elements(self, sizes: Mapping[str, int]) -> int | None:
        """Number of elements at these sizes of symbolic dimensions; None where it is not known."""
        dims = [None if d is None else dimension_size(d, sizes) for d in self.shape or ()]
        known = [d for d in dims if d is not None]
        return math.prod(known) if self.shape is not None and len(known) == len(dims) else None


@dataclass(frozen=True)
class Node:
    """One operation; empty names stand for inputs and outputs that are left out."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: tuple[Graph, ...] = ()
    """Graphs in its attributes, of a loop or a branch."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all that it reads, that of its bodies from outside included."""
        outside = (name for body in self.bodies for name in body.from_outside)
        return tuple(dict.fromkeys(name for name in (*self.inputs, *outside) if name))


@dataclass(frozen=True)
class Graph:
    """Nodes in file order, and what is known of the values."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, int]
    """{initializer: bytes}"""
    kinds: Mapping[str, Kind]

    @property
    def from_outside(self) -> tuple[str, ...]:
        """What nodes read that is made outside, in the graph around this one."""
        own = {*self.inputs, *self.constants, *(name for node in self.nodes for name in node.outputs)}
        return tuple(dict.fromkeys(name for node in self.nodes for name in node.reads if name not in own))

    @property
    def size(self) -> int:
        """Nodes, those of bodies included."""
        return sum(1 + sum(body.size for body in node.bodies) for node in self.nodes)


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file; ArtifactError where it is none."""
    with reading(path) as model:
        graph = model.first(7)
        if graph is None:
            raise ArtifactError(f"'{path}' holds no graph. Export the artifact again.")
        return _graph(graph, 0)


def _graph(message: Message, depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise IndexError(f"its graphs are nested more than {_MAX_DEPTH} deep")
    parts: dict[int, list[Message]] = {}
    for number, contents in message.fields():
        parts.setdefault(number, []).append(contents)
    constants, kinds = {}, {}
    for tensor in parts.get(5, []):
        name, shape = _name(tensor, 8), tuple(tensor.integers(1))
        kinds[name] = Kind(_item_bytes(tensor.integers(2)), shape)
        constants[name] = (kinds[name].elements({}) or 0) * kinds[name].item_bytes
    for value in (*parts.get(11, []), *parts.get(12, []), *parts.get(13, [])):
        kinds[_name(value, 1)] = _kind(value)
    return Graph(
        tuple(read_node(node, depth) for node in parts.get(1, [])),
        tuple(_name(value, 1) for value in parts.get(11, [])),
        tuple(_name(value, 1) for value in parts.get(12, [])),
        constants,
        kinds,
    )


def read_node(message: Message, depth: int = 0) -> Node:
    """A NodeProto, within `depth` graphs of other nodes."""
    bodies = (body for attribute in message.every(5) for number in (6, 11) for body in attribute.every(number))
    return Node(
        _name(message, 4), tuple(message.texts(1)), tuple(message.texts(2)), tuple(_graph(b, depth + 1) for b in bodies)
    )


def _kind(value: Message) -> Kind:
    kind = value.first(2)
    tensor = None if kind is None else kind.first(1)
    if tensor is None:  # a sequence, say
        return Kind(0, None)
    shape = tensor.first(2)
    return Kind(_item_bytes(tensor.integers(1)), None if shape is None else tuple(map(_dimension, shape.every(1))))


def _dimension(message: Message) -> int | str | None:
    size, symbol = message.integers(1), message.first(2)
    return size[-1] if size else symbol.text() if symbol is not None else None


def _item_bytes(types: list[int]) -> int:
    return ITEM_BYTES.get(types[-1], 0) if types else 0


def _name(message: Message, number: int) -> str:
    found = message.first(number)
    return "" if found is None else found.text()
