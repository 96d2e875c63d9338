"""What a training run will take of this process's memory on the CPU, before it begins.

The sum of named parts. Tensors are counted; buffers within a graph follow from a walk through it (`liveness`, `arena`).
The constants below are measured; the table that `tools/memory_estimate.py` writes says how far off the sums are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxft.manifest import GraphFile, GraphRole, Manifest, Port, dimension_size
from onnxft.memory import resident_bytes, size_text
from onnxft.runtime.arena import Arena
from onnxft.runtime.graph_values import Graph, read_graph
from onnxft.runtime.keys import always_in_place, family, key_of, written
from onnxft.runtime.liveness import Lives, folded, lives
from onnxft.runtime.providers import runtime

LIBRARY_BYTES = 15_000_000
"""Of the runtime and numpy that the first steps bring into memory."""
NODE_BYTES = 10_000
"""Of an operator in an open session."""
CONVOLUTION_COPIES = 3
"""Of a frozen weight of a convolution: with BatchNorm in it, in blocks of channels, and what is left of making them."""
BATCHES_IN_MEMORY = 2
"""A batch that is fed, and its copy for the runtime; those that are read ahead come on top."""
WRITING = "writing weights and checkpoints"
ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Use:
    """What a session will be used for."""

    accumulates: bool = False
    """Gradients are added up, clipped or summed, so `gradients` and `update` run instead of `train`."""
    clips: bool = False
    """Gradients are clipped."""
    evaluates: bool = False
    averages: bool = False
    saves: bool = False
    """Weights and checkpoints are written."""
    read_ahead: int = 0
    """Batches that wait for their turn."""
    recompute: bool = False
    """Activations are computed again for the backward pass."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of this process at its fullest."""

    parts: dict[str, int]
    """{what: bytes}"""
    sizes: dict[str, int]
    """{symbolic dimension: its largest size}, the batch included."""
    guessed: int = 0
    """Values in graphs whose size was not known, and counted as that of their inputs."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    def with_part(self, what: str, size: int) -> MemoryEstimate:
        """With another part."""
        return replace(self, parts={**self.parts, what: size})

    @property
    def line(self) -> str:
        """In a few words: the sum and its largest parts."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{what} {size_text(size)}" for what, size in largest)
        return f"about {size_text(self.total)} ({named}, ...)"


def why_no_estimate(manifest: Manifest, provider: str) -> str:
    """Why memory cannot be estimated, as a clause; empty where it can."""
    if manifest.generator != "native":
        return f"an artifact of the generator '{manifest.generator}' is computed by its own package"
    return "" if provider == "cpu" else f"the provider '{provider}' lays out memory in its own way"


def base_bytes() -> int:
    """What this process has in memory, with the runtime loaded; 0 where the system does not tell."""
    runtime()
    return resident_bytes() or 0


class MemoryModel:
    """Estimates for one artifact; its graphs are read once."""

    def __init__(self, directory: Path, manifest: Manifest, base: int | None = None) -> None:
        """Prepare.

        Args:
            directory: of the artifact.
            manifest: of it, of the native generator.
            base: `base_bytes` before a session opened; None: as it is now.
        """
        self._directory, self._manifest = directory, manifest
        self._base = base_bytes() if base is None else base
        self._graphs: dict[str, Graph] = {}

    def estimate(self, sizes: Collection[Mapping[str, int]], use: Use = Use()) -> MemoryEstimate:
        """The parts for a session.

        Args:
            sizes: each {symbolic dimension: its size} that a batch may have, the batch included; the largest first.
            use: what it will be used for.
        """
        arena = Arena()
        opened, constants, guessed = 0, 0, 0
        for file, run in self._opened(use):
            graph = self._graph(file)
            for at in sizes if _varies(file) else list(sizes)[:1]:
                found = self._lives(file, at)
                guessed += found.guessed
                opened += graph.size * NODE_BYTES
                constants += found.constants + frozen_bytes(graph, folded(graph, at))
                if run:
                    arena.run(found.events)
        largest = next(iter(sizes))
        parts = {
            "interpreter and libraries": self._base + LIBRARY_BYTES,
            "open graphs": opened,
            "frozen weights and constants": constants,
            **self._tensors(use),
            ACTIVATIONS: arena.resident,
            "batches": (BATCHES_IN_MEMORY + use.read_ahead) * self._batch_bytes(largest),
        }
        return MemoryEstimate({what: size for what, size in parts.items() if size}, dict(largest), guessed)

    def _opened(self, use: Use) -> list[tuple[GraphFile, bool]]:
        """Each graph that is opened, and whether it runs, in the order in which a run opens them."""
        roles: dict[GraphRole, bool] = {"train": not use.accumulates}
        if self._manifest.features:
            roles["trunk"] = True
        if use.accumulates:
            roles |= {"gradients": True, **({"clip": True} if use.clips else {}), "update": True}
        if use.averages and "average" in self._manifest.graphs:
            roles["average"] = True
        if use.evaluates:
            roles["eval"] = True
        return [(self._manifest.graph(role, recompute=use.recompute), run) for role, run in roles.items()]

    def _tensors(self, use: Use) -> dict[str, int]:
        """What lives between steps; what `train` may not write in place has a second buffer."""
        trained, state = self._trained, self._state
        train = self._manifest.graph("train", recompute=use.recompute)
        fixed = always_in_place(graph for _, graph in self._manifest.every_graph)
        free = [p for p in train.outputs if (key := key_of(p)) is not None and key not in fixed]
        moving = {p.role for p in free if not p.in_place}
        parts = {"trained parameters": trained, "optimizer state": state}
        statistics = sum(math.prod(b.shape) * np.dtype(b.dtype).itemsize for b in self._manifest.buffers)
        if use.accumulates:
            # The zeros that accumulators begin with are never written, and so take no memory.
            moved = any(not in_place for file, _ in self._opened(use) for in_place in _accumulated(file).values())
            parts |= {"gradients": trained * (2 if moved else 1), "running statistics": 2 * statistics}
        else:
            new = sum(_port_bytes(p, {}) for p in free if p.role in moving & {"parameter", "state"})
            parts |= {"new parameters and state": new, "running statistics": 2 * statistics}
        if use.averages:
            parts["averages"] = trained
        if use.saves:
            # At the end the best weights are read, their file beside what was in it.
            parts[WRITING] = 2 * trained
        return parts

    @cached_property
    def _trained(self) -> int:
        return sum(p.size * np.dtype(p.dtype).itemsize for p in self._manifest.parameters)

    @cached_property
    def _state(self) -> int:
        return sum(_port_bytes(p, {}) for p in self._manifest.graph("train").inputs if p.role == "state")

    def _batch_bytes(self, sizes: Mapping[str, int]) -> int:
        fed = ("input", "label", "sample_weight", "random")
        ports = {p.name: p for p in (*self._manifest.inputs, *self._manifest.graph("train").inputs) if p.role in fed}
        return sum(_port_bytes(p, sizes) for p in ports.values())

    def _graph(self, file: GraphFile) -> Graph:
        if file.file not in self._graphs:
            self._graphs[file.file] = read_graph(self._directory / file.file)
        return self._graphs[file.file]

    def _lives(self, file: GraphFile, sizes: Mapping[str, int]) -> Lives:
        given = [p.name for p in file.outputs if key_of(p) is not None]
        return lives(self._graph(file), sizes, given)


def _accumulated(file: GraphFile) -> dict[str, bool]:
    """{key: whether it is written over the old} of the accumulators that a graph writes."""
    return {key: in_place for key, in_place in written(file.outputs).items() if family(key) == "accumulator"}


def _varies(file: GraphFile) -> bool:
    return any(isinstance(d, str) for p in file.inputs for d in p.shape)


def frozen_bytes(graph: Graph, constants: Collection[str]) -> int:
    """Memory of a graph's initializers in an open session.

    Weights of products are packed anew, those of convolutions too; others are mapped from their file, and of a table
    only the rows that are looked up come into memory.
    """
    total = 0
    for node in graph.nodes:
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        if weight in graph.constants and weight not in constants:
            copies = {"Conv": CONVOLUTION_COPIES, "MatMul": 1, "Gemm": 1}.get(node.op_type, 0)
            total += copies * graph.constants[weight]
    return total


def _port_bytes(port: Port, sizes: Mapping[str, int]) -> int:
    return math.prod(dimension_size(d, sizes) or 1 for d in port.shape) * np.dtype(port.dtype).itemsize
