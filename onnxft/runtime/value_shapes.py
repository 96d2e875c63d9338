"""The shapes of all values of a graph once its dimensions have sizes, as a session knows them when it is open."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxft.manifest import dimension_size
from onnxft.runtime.graph_values import Graph, Node

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Their output is the input's memory, and has its elements."""

Shape = tuple[int, ...]


class Shapes:
    """Shapes and bytes by the name of a value."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        """Work out the shapes; what the file leaves open follows from the inputs of a node."""
        self._graph = graph
        self._shapes: dict[str, Shape] = {}
        self.guessed = 0
        """Values whose open dimensions are taken from the inputs of an operator that might change them."""
        made = {name for node in graph.nodes for name in node.outputs}
        for name, kind in graph.kinds.items():
            if name not in made and kind.shape is not None:
                self._shapes[name] = tuple(1 if (size := _size(d, sizes)) is None else size for d in kind.shape)
        for node in graph.nodes:
            for name in filter(None, node.outputs):
                self._shapes[name] = self._of(node, name, sizes)

    def bytes(self, name: str) -> int:
        """Of a value; 0 where nothing is known of it."""
        kind = self._graph.kinds.get(name)
        return self._elements(name) * (4 if kind is None else kind.item_bytes)

    def like(self, name: str) -> tuple[int, ...]:
        """Element size and dimensions: values that have the same may follow each other in a buffer."""
        kind = self._graph.kinds.get(name)
        return (4 if kind is None else kind.item_bytes, *self._shapes.get(name, ()))

    def _elements(self, name: str) -> int:
        return math.prod(self._shapes[name]) if name in self._shapes else 0

    def _of(self, node: Node, name: str, sizes: Mapping[str, int]) -> Shape:
        kind = self._graph.kinds.get(name)
        if kind is None or kind.shape is None:
            self.guessed += node.op_type not in VIEWS
            return max((self._shapes.get(source, ()) for source in node.inputs), key=math.prod, default=())
        dims = [_size(d, sizes) for d in kind.shape]
        if node.op_type == "Gather" and len(self._shapes.get(node.inputs[0], ())) == 1:
            return self._shapes.get(node.inputs[1], ())  # from a vector, as many as there are indices
        known = math.prod(d for d in dims if d is not None)
        if dims.count(None) == 1 and known:
            total = self._product(node, known) if node.op_type in (*VIEWS, "Gemm") else 0
            if total:
                return tuple(total // known if d is None else d for d in dims)
        if None in dims:
            self.guessed += 1
        return tuple(self._input_dim(node, at - len(dims)) if d is None else d for at, d in enumerate(dims))

    def _product(self, node: Node, known: int) -> int:
        """Elements of a view, or of (M, N) = (M, K) @ (K, N) where N is known."""
        first = self._elements(node.inputs[0])
        if node.op_type != "Gemm":
            return first
        inner = self._elements(node.inputs[1]) // known
        return first // inner * known if inner else 0

    def _input_dim(self, node: Node, position: int) -> int:
        """The largest dimension of the inputs at a position counted from the last, as they are broadcast."""
        shapes = (self._shapes.get(name, ()) for name in node.inputs)
        return max((shape[position] for shape in shapes if len(shape) >= -position), default=1)


def _size(dimension: int | str | None, sizes: Mapping[str, int]) -> int | None:
    return None if dimension is None else dimension_size(dimension, sizes)
