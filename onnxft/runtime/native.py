"""The engine of the native generator: the artifact's graphs on ordinary inference sessions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from onnxft.errors import ArtifactError
from onnxft.manifest import BATCH, PARAMETERS_FILE, GraphFile, GraphRole, Manifest, Port, dimension_size
from onnxft.runtime.buffers import (
    STATISTIC_SLOT,
    BoundRunner,
    BoundStore,
    Runner,
    ValueRunner,
    ValueStore,
    key_of,
)
from onnxft.runtime.engine import Array, Arrays, Evaluation, Hyper, Placement, Sums
from onnxft.runtime.providers import provider, runtime
from onnxft.runtime.sessions import OpenSession, open_session


class NativeEngine:
    """Training on one provider; see `onnxft.runtime.engine.Engine` for the methods."""

    supports_weights = True

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        name: str = "cpu",
        *,
        threads: int | None = None,
        batch_size: int | None = None,
        dimensions: Mapping[str, int] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Read the initial parameters; graphs are opened when first needed, the training graph now.

        Raises:
            ProviderError: the provider is absent or does not run the graphs.
            ArtifactError: a weights file does not fit the manifest.
        """
        self.manifest = manifest
        # The rows of a batch meet in the statistics of a trained BatchNorm, whatever they weigh in the loss.
        self.weights_in_training = not manifest.buffers
        self.batch_size = batch_size or manifest.batch_size
        self.dimensions: Mapping[str, int] = {BATCH: self.batch_size, **manifest.dimensions, **(dimensions or {})}
        self._directory, self._name, self._threads, self._options = directory, name, threads, options
        self._sessions: dict[GraphRole, OpenSession] = {}
        self._runners: dict[GraphRole, Runner] = {}
        initial = self._initial()
        self._store: BoundStore | ValueStore = (
            BoundStore(initial) if provider(name).binding == "bound" else ValueStore(initial)
        )
        self._open("train")

    @property
    def placement(self) -> Placement:
        """What was asked for and what runs, over the graphs opened so far."""
        return Placement(
            requested=self._name,
            obtained=self._sessions["train"].provider.name,
            nodes={role: dict(opened.nodes) for role, opened in self._sessions.items()},
            options=self._sessions["train"].options,
            versions={"onnxruntime": runtime().__version__},
        )

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch, in one run."""
        return _sums(
            self.manifest.graph("train"), self._run("train", {**batch, **_scalars(self._ports("train"), hyper)})
        )

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch to the accumulators."""
        return _sums(self.manifest.graph("gradients"), self._run("gradients", batch))

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators over `weight_sum`; empties them."""
        scalars = _scalars(self._ports("update"), hyper, weight_sum)
        self._run("update", scalars)
        self._store.clear_accumulators()

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the weighted loss sum, and the weight sum; the accumulators stay as they are."""
        graph, opened = self.manifest.graph("gradients"), self._open("gradients")
        feeds = dict(batch)
        for port in graph.inputs:
            key = key_of(port)
            if port.role == "accumulator":
                feeds[port.name] = np.zeros([int(d) for d in port.shape], port.dtype)
            elif key is not None:
                feeds[port.name] = self._store.read(key)
        values = opened.session.run([p.name for p in graph.outputs], feeds)
        found = dict(zip(graph.outputs, values, strict=True))
        weight = next(float(v) for p, v in found.items() if p.role == "weight_sum")
        return {p.parameter: v for p, v in found.items() if p.role == "gradient" and p.parameter}, weight

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour."""
        results = self._run("eval", batch)
        loss_sum, weight_sum, metrics = _sums(self.manifest.graph("eval"), results).read()
        outputs = {
            p.name: np.array(results[p.name].numpy()) for p in self._ports("eval", "outputs") if p.role == "output"
        }
        return Evaluation(loss_sum, weight_sum, metrics, outputs)

    def parameters(self) -> dict[str, Array]:
        """Copies of the trained parameters."""
        return {p.name: self._store.read(p.name) for p in self.manifest.parameters}

    def set_parameters(self, values: Arrays) -> None:
        """Replace the named parameters."""
        for name, value in values.items():
            self._store.write(name, value)

    def buffers(self) -> dict[str, Array]:
        """Copies of the trained running statistics."""
        return {b.name: self._store.read(f"{b.name}/{STATISTIC_SLOT}") for b in self.manifest.buffers}

    def set_buffers(self, values: Arrays) -> None:
        """Replace the named running statistics."""
        for name, value in values.items():
            self._store.write(f"{name}/{STATISTIC_SLOT}", value)

    def state(self) -> dict[str, Array]:
        """Copies of the optimizer state, keyed `parameter/slot`."""
        return {key_of(p) or "": self._store.read(key_of(p) or "") for p in self._ports("train") if p.role == "state"}

    def set_state(self, values: Arrays) -> None:
        """Replace the optimizer state, and empty the accumulators."""
        for key, value in values.items():
            self._store.write(key, value)
        self._store.clear_accumulators()

    def close(self) -> None:
        """Release sessions and buffers."""
        self._runners.clear()
        for opened in self._sessions.values():
            opened.close()

    # ----- helpers -----

    def _run(self, role: GraphRole, feeds: Arrays) -> dict[str, Any]:
        if role not in self._runners:
            opened, graph = self._open(role), self.manifest.graph(role)
            self._runners[role] = (
                # `update` is element by element in what it replaces, so it may write in place.
                BoundRunner(opened, graph, self._store, in_place=role == "update")
                if isinstance(self._store, BoundStore)
                else ValueRunner(opened, graph, self._store)
            )
        return self._runners[role].run(feeds)

    def _open(self, role: GraphRole) -> OpenSession:
        if role not in self._sessions:
            graph = self.manifest.graph(role)
            # A random input may have `batch*sequence` rows, which the runtime takes for another dimension.
            composed = {d: dimension_size(d, self.dimensions) for p in graph.inputs for d in p.shape}
            self._sessions[role] = open_session(
                self._directory / graph.file,
                self._name,
                threads=self._threads,
                dimensions={**self.dimensions, **{d: n for d, n in composed.items() if isinstance(d, str) and n}},
                options=self._options,
            )
        return self._sessions[role]

    def _ports(self, role: GraphRole, side: str = "inputs") -> tuple[Port, ...]:
        graph = self.manifest.graph(role)
        return graph.inputs if side == "inputs" else graph.outputs

    def _initial(self) -> dict[str, Array]:
        """Parameters and running statistics from the file; state and accumulators are zeros."""
        if PARAMETERS_FILE not in self.manifest.files:  # then nothing has checked it
            raise ArtifactError(
                f"the manifest of '{self.manifest.name}' has no sha256 of {PARAMETERS_FILE}. Export the artifact again."
            )
        values: dict[str, Array] = dict(load_file(self._directory / PARAMETERS_FILE))
        expected = {t.name: (t.shape, t.dtype) for t in self.manifest.weights}
        found = {name: (v.shape, v.dtype.name) for name, v in values.items()}
        if found != expected:
            differing = sorted(set(expected.items()) ^ set(found.items()))
            raise ArtifactError(
                f"{PARAMETERS_FILE} of '{self.manifest.name}' does not hold the tensors of the manifest, first "
                f"difference: {differing[0]}. Export the artifact again."
            )
        for buffer in self.manifest.buffers:
            values[f"{buffer.name}/{STATISTIC_SLOT}"] = values.pop(buffer.name)
        for port in (*self._ports("train"), *self._ports("gradients")):
            if port.role in ("state", "accumulator"):
                values[key_of(port) or ""] = np.zeros([int(d) for d in port.shape], port.dtype)
        return values


def _scalars(ports: tuple[Port, ...], hyper: Hyper, weight_sum: float | None = None) -> dict[str, Array]:
    """The scalar inputs of a training or update graph."""
    values: dict[str, Array] = {}
    for port in ports:
        match port.role:
            case "lr":
                value: float | None = hyper.lr[port.group or ""]
            case "weight_decay":
                value = hyper.weight_decay[port.group or ""]
            case "step":
                value = hyper.step
            case "max_norm":
                value = hyper.max_norm
            case "max_value":
                value = hyper.max_value
            case "weight_sum":
                value = weight_sum
            case _:
                continue
        values[port.name] = np.array(value, port.dtype)
    return values


def _sums(graph: GraphFile, results: Mapping[str, Any]) -> Sums:
    """Loss, weight and metrics of a run, read when asked for."""

    def read() -> tuple[float, float, dict[str, float]]:
        value = {
            p.name: float(results[p.name].numpy())
            for p in graph.outputs
            if p.role in ("loss_sum", "weight_sum", "metric")
        }
        metrics = {p.slot or p.name: value[p.name] for p in graph.outputs if p.role == "metric"}
        loss, weight = (next(value[p.name] for p in graph.outputs if p.role == r) for r in ("loss_sum", "weight_sum"))
        return loss, weight, metrics

    return Sums(read)
