"""Which memory the values of a graph take, and when, as ONNX Runtime plans it on the CPU.

What follows from constants is computed when the session opens. Nodes run in an order of the runtime's own: from the
last node that nothing reads back through the inputs, later ones first, then from the one before it. Some outputs are
views of an input, some take its place where nothing else reads it. A buffer whose value has died is kept for the next
value of the same shape; it goes back to the arena after its last such use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnxft.runtime.fusion import fused
from onnxft.runtime.graph_values import Graph, Node
from onnxft.runtime.value_shapes import VIEWS, Shapes

_OVER_INPUT = (
    "Celu", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu", "ScatterElements", "Selu", "Sigmoid",
    "Softmax", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Their output takes the place of the first input, where nothing else reads that; found by measuring chains of each."""
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


@dataclass(frozen=True)
class Event:
    """A buffer is taken, or given back (`taken` False), around a node."""

    buffer: str
    """The value that it was made for."""
    size: int
    """Bytes."""
    taken: bool
    node: str = ""
    """Type of the operator."""


@dataclass(frozen=True)
class Lives:
    """What a run of a graph does with memory."""

    events: tuple[Event, ...]
    """In the order of execution."""
    constants: int
    """Bytes computed when the session opens, which stay."""
    guessed: int
    """Values whose size neither the graph nor its operators say: they count as their node's largest input."""

    def peak(self) -> tuple[int, dict[str, int]]:
        """Bytes of the buffers at the fullest moment, and {buffer: bytes} then."""
        live: dict[str, int] = {}
        total = most = 0
        largest: dict[str, int] = {}
        for event in self.events:
            if event.taken:
                live[event.buffer] = event.size
                total += event.size
                if total > most:
                    most, largest = total, dict(live)
            else:
                total -= live.pop(event.buffer)
        return most, largest


def lives(graph: Graph, sizes: Mapping[str, int], given: Collection[str] = ()) -> Lives:
    """Follow one run.

    Args:
        graph: as it lies in the artifact.
        sizes: {symbolic dimension: size}.
        given: outputs that are written into memory of the caller.
    """
    return _Planner(graph, sizes, given).plan()


def folded(graph: Graph, sizes: Mapping[str, int]) -> set[str]:
    """Names of values that follow from constants and fixed shapes alone: the session computes them when it opens."""
    known = set(graph.constants)
    for node in graph.nodes:
        kind = graph.kinds.get(node.inputs[0]) if node.op_type == "Shape" else None
        fixed = kind is not None and kind.elements(sizes) is not None
        if node.op_type not in _RANDOM and not node.bodies and (fixed or all(name in known for name in node.reads)):
            known.update(node.outputs)
    return known - set(graph.constants) - {""}


def execution_order(nodes: list[Node]) -> list[Node]:
    """The nodes as the runtime runs them."""
    made_by = {name: at for at, node in enumerate(nodes) for name in node.outputs if name}
    before = [sorted({made_by[name] for name in node.reads if name in made_by}) for node in nodes]
    read = {at for sources in before for at in sources}
    waiting = [(at, False) for at in range(len(nodes)) if at not in read]
    seen: set[int] = set()
    order = []
    while waiting:
        at, done = waiting.pop()
        if done:
            order.append(nodes[at])
        elif at not in seen:
            seen.add(at)
            waiting.append((at, True))
            waiting += ((source, False) for source in before[at] if source not in seen)
    return order


class _Planner:
    """Buffers of one graph."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], given: Collection[str]) -> None:
        self._graph, self._sizes = graph, sizes
        self._folded = folded(graph, sizes)
        constants = {*graph.constants, *self._folded}
        run = [n for n in graph.nodes if not self._is_folded(n)]
        self._order = execution_order(fused(run, constants, graph.outputs))
        self._shapes = Shapes(graph, sizes)
        self._outside = {*graph.inputs, *constants, *given}
        self._buffer = {name: name for name in self._outside}
        """{value: the one whose buffer it lies in}"""
        self._unread = Counter(name for node in self._order for name in node.reads)
        """{buffer: reads that are still to come}, for a value of its own when it is made"""
        self._free: list[str] = []
        """Buffers whose value has died, the newest last."""

    def plan(self) -> Lives:
        born: dict[str, int] = {}
        died: dict[str, int] = {}
        inside = {}
        kept = {*self._outside, *self._graph.outputs}
        for at, node in enumerate(self._order):
            for position, name in enumerate(node.outputs):
                if name and name not in self._buffer:
                    buffer = self._buffer[name] = self._place(node, position, name, kept)
                    born.setdefault(buffer, at)
                    if buffer != name:
                        self._unread[buffer] += self._unread[name]
            inside[at] = sum(lives(body, self._sizes).peak()[0] for body in node.bodies)
            for name in node.reads:
                buffer = self._buffer.setdefault(name, name)
                self._unread[buffer] -= 1
            for buffer in dict.fromkeys(self._buffer[name] for name in (*node.reads, *node.outputs) if name):
                if self._unread[buffer] == 0 and buffer in born and buffer not in kept:
                    died[buffer] = at
                    self._free.append(buffer)
        events = []
        ends: dict[int, list[str]] = {}
        for buffer, at in died.items():
            ends.setdefault(at, []).append(buffer)
        for at, node in enumerate(self._order):
            begun = [name for name in node.outputs if born.get(name) == at]
            events += [Event(name, self._shapes.bytes(name), True, node.op_type) for name in begun]
            if inside[at]:
                events += [Event(f"in node {at}", inside[at], taken, node.op_type) for taken in (True, False)]
            events += [Event(name, self._shapes.bytes(name), False, node.op_type) for name in ends.get(at, ())]
        constants = {n for node in self._order for n in node.reads if n in self._folded}
        constants |= self._folded & set(self._graph.outputs)
        return Lives(tuple(events), sum(map(self._shapes.bytes, constants)), self._shapes.guessed)

    def _place(self, node: Node, position: int, name: str, kept: Collection[str]) -> str:
        """The buffer that an output gets: one that is there already, else its own."""
        if name in self._graph.outputs:
            return name
        if position == 0 and node.op_type in (*VIEWS, *_OVER_INPUT):
            buffer = self._buffer[node.inputs[0]]
            if node.op_type in VIEWS:
                return buffer
            if (
                buffer not in kept
                and self._unread[buffer] == 1
                and self._shapes.bytes(buffer) == self._shapes.bytes(name)
            ):
                return buffer
        for buffer in reversed(self._free):
            if self._shapes.like(buffer) == self._shapes.like(name):
                self._free.remove(buffer)
                return buffer
        return name

    def _is_folded(self, node: Node) -> bool:
        return all(name in self._folded for name in node.outputs if name)
