"""Where a model reads its parameters: the nodes at which they meet the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxft.graph.forward import Forward
from onnxft.graph.walk import after


class Reading:
    """The readers of every parameter in a graph."""

    def __init__(self, graph: ir.Graph, parameters: Mapping[str, ir.Value], data: Iterable[ir.Value]) -> None:
        """Walk the graph once; `data` are its inputs that are no parameters."""
        self.order = {node: index for index, node in enumerate(graph)}
        self._fed = after(graph, data)
        self.readers = {n: readers for n, v in parameters.items() if (readers := self._readers(v))}
        """{parameter that is read: nodes that combine it, or what is made of it alone, with data}"""

    @classmethod
    def of(cls, forward: Forward) -> Reading:
        """The readers in the training graph of a model."""
        graph = forward.train.graph
        names = [t.name for t in forward.tensors if t.kind == "parameter" and t.name in graph.initializers]
        return cls(graph, {name: graph.initializers[name] for name in names}, graph.inputs)

    def is_data(self, value: ir.Value | None) -> bool:
        """Whether `value` depends on an input of the model."""
        return value in self._fed

    def span(self, names: Iterable[str]) -> tuple[int, int]:
        """Places in the graph of the first and the last reader of the parameters."""
        places = [self.order[node] for name in names for node in self.readers[name]]
        return min(places), max(places)

    def behind(self, nodes: Iterable[ir.Node]) -> list[str]:
        """The parameters that only meet data which the nodes have had an effect on."""
        graph = next(iter(self.order)).graph
        assert graph is not None
        later = after(graph, (y for node in nodes for y in node.outputs))
        return [
            name
            for name, readers in self.readers.items()
            if all(any(x in later for x in node.inputs) for node in readers)
        ]

    def _readers(self, value: ir.Value) -> tuple[ir.Node, ...]:
        found: dict[ir.Node, None] = {}
        waiting = [node for node, _ in value.uses()]
        while waiting:
            node = waiting.pop()
            if node not in self.order:  # it stands in the body of a Scan, which reads the value around it
                continue
            if any(self.is_data(x) for x in node.inputs):
                found[node] = None
            else:
                waiting += [user for y in node.outputs for user, _ in y.uses()]
        return tuple(sorted(found, key=self.order.__getitem__))
