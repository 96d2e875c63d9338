"""The native generator's graphs over the tensors that live between steps: opened when first needed, and run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError
from onnxft.manifest import BATCH, PARAMETERS_FILE, GraphFile, GraphRole, Manifest, dimension_size
from onnxft.runtime.buffers import BoundRunner, BoundStore, Runner, device_of, ort_value
from onnxft.runtime.engine import Placement
from onnxft.runtime.execution import Execution
from onnxft.runtime.keys import STATISTIC_SLOT, always_in_place, key_of
from onnxft.runtime.native_values import on_averages
from onnxft.runtime.precision import execution_of, graph_of, updates_apart
from onnxft.runtime.providers import provider, runtime
from onnxft.runtime.sessions import ROUNDING_FUSIONS, OpenSession, open_session, run_options, running
from onnxft.runtime.sizes import sizes_of
from onnxft.runtime.values import SplitStore, ValueRunner, ValueStore

_ELEMENTWISE: tuple[GraphRole, ...] = ("clip", "update", "average")
"""Of arithmetic alone, in which the runtime finds nothing to rewrite: looking takes half and more of their opening."""


class GraphRuns:
    """Each role is a session of the runtime for each size of a dimension. They take turns, so they share an arena."""

    def __init__(
        self, directory: Path, manifest: Manifest, asked: Execution, sizes: tuple[Mapping[str, int], ...]
    ) -> None:
        """Open the graph that a step begins with, and read the initial parameters.

        Args:
            directory: of the artifact.
            manifest: of it.
            asked: where and how graphs run.
            sizes: each {symbolic dimension: its size} that a batch may have, the batch included; the largest first.

        Raises:
            ProviderError: the provider is absent or does not run the graph.
            ArtifactError: a weights file does not fit the manifest.
        """
        self._directory, self._manifest, self._asked, self._all_sizes = directory, manifest, asked, sizes
        self.sessions: dict[str, OpenSession] = {}
        """{role, and behind it the sizes that vary: its open session}"""
        self._runners: dict[tuple[str, bool], Runner] = {}
        # Opened before buffers are made: a provider that is not here has no memory either.
        self._open("gradients" if updates_apart(asked) else "train", sizes[0])
        self.store = _store(manifest, asked, _initial(directory, manifest))

    @property
    def placement(self) -> Placement:
        """What was asked for and what runs, over the graphs opened so far."""
        first = next(iter(self.sessions.values()))
        return Placement(
            requested=self._asked.provider,
            obtained=first.provider.name,
            nodes={label: dict(opened.nodes) for label, opened in self.sessions.items()},
            fallback={label: dict(opened.fallback) for label, opened in self.sessions.items() if opened.fallback},
            precision=self._asked.precision,
            device=self._asked.device or 0,
            options=first.options,
            versions={"onnxruntime": runtime().__version__},
        )

    def graph(self, role: GraphRole, *, averages: bool = False) -> GraphFile:
        """The graph that a role runs; with the averages where it reads parameters, if asked for."""
        graph = graph_of(role, self._manifest, self._asked)
        return on_averages(graph) if averages else graph

    def run(self, role: GraphRole, feeds: Arrays, *, averages: bool = False) -> dict[str, Any]:
        """Run once: tensors of the store move on, the other outputs are returned as OrtValues."""
        sizes = self._sizes(role, feeds)
        opened, place = self._open(role, sizes), (self._label(role, sizes), averages)
        if place not in self._runners:
            self._runners[place] = self._runner(opened, self.graph(role, averages=averages))
        with running(opened, role):
            return self._runners[place].run(feeds)

    def run_aside(self, role: GraphRole, feeds: Arrays) -> dict[str, Array]:
        """Outputs of a run from no gradients, that leaves the store as it is."""
        graph, opened = self.graph(role), self._open(role, self._sizes(role, feeds))
        values = dict(feeds)
        for port in graph.inputs:
            key = key_of(port)
            if port.role == "accumulator":
                values[port.name] = np.zeros([int(d) for d in port.shape], port.dtype)
            elif key is not None:
                values[port.name] = self.store.read(key)
        names = [p.name for p in graph.outputs]
        with running(opened, role):
            return dict(zip(names, opened.session.run(names, values, *run_options(opened)), strict=True))

    def run_rows(self, role: GraphRole, feeds: Arrays, rows: int, *, averages: bool = False) -> dict[str, Any]:
        """Run a graph that writes nothing on another number of rows, in a session for this one run."""
        graph = self.graph(role, averages=averages)
        opened = self._session(role, {**self._sizes(role, feeds), BATCH: rows})
        names = [p.name for p in graph.outputs]
        values = {p.name: feeds[p.name] if (key := key_of(p)) is None else self.store.read(key) for p in graph.inputs}
        with running(opened, role):
            results = opened.session.run_with_ort_values(
                names, {name: ort_value(value) for name, value in values.items()}, *run_options(opened)
            )
        opened.close()
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Release sessions and what is bound to them."""
        self._runners.clear()
        for opened in self.sessions.values():
            opened.close()

    # ----- helpers -----

    def _sizes(self, role: GraphRole, feeds: Arrays) -> Mapping[str, int]:
        return sizes_of(feeds, self.graph(role).inputs, self._all_sizes)

    def _runner(self, opened: OpenSession, graph: GraphFile) -> Runner:
        store = self.store
        if isinstance(store, ValueStore) or (isinstance(store, SplitStore) and opened.provider.binding == "values"):
            return ValueRunner(opened, graph, store)
        return BoundRunner(opened, graph, store)

    def _open(self, role: GraphRole, sizes: Mapping[str, int]) -> OpenSession:
        label = self._label(role, sizes)
        if label not in self.sessions:
            self.sessions[label] = self._session(role, sizes)
        return self.sessions[label]

    def _label(self, role: GraphRole, sizes: Mapping[str, int]) -> str:
        """The role, and behind it the sizes that vary; a graph over parameters alone has none."""
        fixed = all(isinstance(d, int) for p in self.graph(role).inputs for d in p.shape)
        varying = {d: n for d, n in sizes.items() if any(s[d] != n for s in self._all_sizes)}
        return role if fixed else " ".join([role, *(f"{d}={n}" for d, n in varying.items())])

    def _session(self, role: GraphRole, dimensions: Mapping[str, int]) -> OpenSession:
        graph, frozen = self.graph(role), self._manifest.frozen_weights
        # A random input may have `batch*sequence` rows, which the runtime takes for another dimension.
        composed = {d: dimension_size(d, dimensions) for p in graph.inputs for d in p.shape}
        return open_session(
            self._directory / graph.file,
            execution_of(role, self._asked),
            dimensions={**dimensions, **{d: n for d, n in composed.items() if isinstance(d, str) and n}},
            shared_arena=True,
            frozen="float32" if frozen is None else frozen.precision,
            # What the backward pass reads is computed apart: so must be what it is a copy of.
            without=ROUNDING_FUSIONS if self._asked.recompute and role in ("train", "gradients") else (),
            optimize=role not in _ELEMENTWISE,
            hashes=self._manifest.files,
        )


def _store(manifest: Manifest, asked: Execution, initial: Mapping[str, Array]) -> BoundStore | ValueStore:
    entry, graphs = provider(asked.provider), manifest.every_graph
    if entry.updates_on:
        return SplitStore(initial, fixed=always_in_place(g for role, g in graphs if role in ("update", "average")))
    if entry.binding == "values":
        return ValueStore(initial)
    return BoundStore(initial, device_of(asked), always_in_place(graph for _, graph in graphs))


def _initial(directory: Path, manifest: Manifest) -> dict[str, Array]:
    """Parameters and running statistics from the file; state and accumulators are zeros."""
    if PARAMETERS_FILE not in manifest.files:  # then nothing has checked it
        raise ArtifactError(
            f"the manifest of '{manifest.name}' has no sha256 of {PARAMETERS_FILE}. Export the artifact again."
        )
    values: dict[str, Array] = dict(load_file(directory / PARAMETERS_FILE))
    expected = {t.name: (t.shape, t.dtype) for t in manifest.weights}
    found = {name: (v.shape, v.dtype.name) for name, v in values.items()}
    if found != expected:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise ArtifactError(
            f"{PARAMETERS_FILE} of '{manifest.name}' does not hold the tensors of the manifest, first "
            f"difference: {differing[0]}. Export the artifact again."
        )
    for buffer in manifest.buffers:
        values[f"{buffer.name}/{STATISTIC_SLOT}"] = values.pop(buffer.name)
    shapes = {p.name: p.shape for p in manifest.parameters}
    for port in (*manifest.graph("train").inputs, *manifest.graph("gradients").inputs):
        if port.role in ("state", "accumulator"):
            # A view of a single zero: of each block of rows there is a port, and arrays would take memory.
            values[key_of(port) or ""] = np.broadcast_to(np.zeros((), port.dtype), shapes[port.parameter or ""])
    return values
