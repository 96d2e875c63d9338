"""The engine of the native generator: the artifact's graphs on ordinary inference sessions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from onnxft.errors import ArtifactError, ConfigError
from onnxft.manifest import BATCH, PARAMETERS_FILE, SAMPLE_WEIGHTS, GraphFile, GraphRole, Manifest, Port, dimension_size
from onnxft.memory import peak_resident_bytes
from onnxft.runtime.batches import Sizes, combined, pad, sizes_of
from onnxft.runtime.buffers import BoundRunner, BoundStore, Runner, device_of
from onnxft.runtime.engine import Array, Arrays, Evaluation, Hyper, Placement, Sums
from onnxft.runtime.execution import Execution
from onnxft.runtime.keys import AVERAGE_SLOT, STATISTIC_SLOT, always_in_place, key_of
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.native_values import on_averages, scalars, sums_of
from onnxft.runtime.parameter_vector import pack, unpack
from onnxft.runtime.precision import execution_of, graph_of, require_precision, updates_apart
from onnxft.runtime.providers import provider, runtime
from onnxft.runtime.sessions import ROUNDING_FUSIONS, OpenSession, open_session, run_options, running
from onnxft.runtime.values import SplitStore, ValueRunner, ValueStore


class NativeEngine:
    """Training on one provider; see `onnxft.runtime.engine.Engine` for the methods."""

    supports_weights = True

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        asked: Execution | None = None,
        *,
        batch_size: int | None = None,
        dimensions: Sizes | None = None,
    ) -> None:
        """Read the initial parameters; graphs are opened when first needed, the training graph now.

        Each role is a session of the runtime for each size of a dimension. They take turns, so they share an arena.

        Raises:
            ProviderError: the provider is absent or does not run the graphs.
            ArtifactError: a weights file does not fit the manifest.
        """
        self.manifest = manifest
        # The rows of a batch meet in the statistics of a trained BatchNorm, whatever they weigh in the loss.
        # One number for a batch has no rows to weight.
        self.weights_in_training = not (manifest.buffers or manifest.loss.scalar)
        self.batch_size = batch_size or manifest.batch_size
        self.sizes = combined(manifest, self.batch_size, dimensions or {})
        self._directory, self._asked = directory, asked or Execution()
        require_precision(provider(self._asked.provider), self._asked)
        self.loss_scale = LossScale()
        self._scales = self._asked.precision == "float16"
        self._magnitude: Any = None
        self._sessions: dict[str, OpenSession] = {}
        self._runners: dict[tuple[str, bool], Runner] = {}
        self.has_averages = self._shows_averages = False
        # Opened before buffers are made: a provider that is not here has no memory either.
        self._open("gradients" if updates_apart(self._asked) else "train", self.sizes[0])
        self._store = self._make_store(self._initial())

    @property
    def placement(self) -> Placement:
        """What was asked for and what runs, over the graphs opened so far."""
        return Placement(
            requested=self._asked.provider,
            obtained=self._first.provider.name,
            nodes={label: dict(opened.nodes) for label, opened in self._sessions.items()},
            fallback={label: dict(opened.fallback) for label, opened in self._sessions.items() if opened.fallback},
            precision=self._asked.precision,
            device=self._asked.device or 0,
            options=self._first.options,
            versions={"onnxruntime": runtime().__version__},
        )

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory of this process."""
        return peak_resident_bytes()

    def features(self, batch: Arrays) -> dict[str, Array]:
        """What the trunk computes of a whole batch's inputs."""
        results = self._run("trunk", {p.name: batch[p.name] for p in self.manifest.inputs})
        return {name: value.numpy() for name, value in results.items()}

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch: in one run, or in two (see `updates_apart`)."""
        if updates_apart(self._asked):
            sums = self.accumulate(batch)
            self.update(hyper, sums.read()[1])
            return sums
        return sums_of(
            self._graph("train"),
            self._run(
                "train",
                {**self._with_features(batch), **scalars(self._ports("train"), hyper, self.loss_scale.skipped)},
            ),
        )

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch to the accumulators, in float16 times the loss scale."""
        batch = self._with_features(batch)
        results = self._run("gradients", self.loss_scale.weighted(batch) if self._scales else batch)
        self._magnitude = results.get("magnitude")
        return sums_of(self._graph("gradients"), results, self._scale)

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators over `weight_sum`; empties them.

        In float16 it is left out where they are not finite: what is not finite in one micro-batch stays so in the sum.
        """
        finite = not self._scales or self._agreed(finite=math.isfinite(float(self._magnitude.numpy())))
        if finite:
            ports, skipped = self._ports("update"), self.loss_scale.skipped
            self._run("update", scalars(ports, hyper, skipped, weight_sum * self._scale))
        self._clear_accumulators()
        if self._scales:
            self.loss_scale = self.loss_scale.after(finite=finite)

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the weighted loss sum, and the weight sum; the accumulators stay as they are.

        In float16 both are times the largest loss scale, from the present one down, at which they are finite.
        """
        scale, batch = self.loss_scale, self._with_features(batch)
        while True:
            found, weight = self._gradients(scale.weighted(batch) if self._scales else batch)
            if not self._scales or self._agreed(finite=all(np.isfinite(g).all() for g in found.values())):
                return found, weight
            scale = scale.after(finite=False)

    def _gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        graph, opened = self._graph("gradients"), self._open("gradients", self._sizes("gradients", batch))
        feeds = dict(batch)
        for port in graph.inputs:
            key = key_of(port)
            if port.role == "accumulator":
                feeds[port.name] = np.zeros([int(d) for d in port.shape], port.dtype)
            elif key is not None:
                feeds[port.name] = self._store.read(key)
        with running(opened, "gradients"):
            values = opened.session.run([p.name for p in graph.outputs], feeds, *run_options(opened))
        found = dict(zip(graph.outputs, values, strict=True))
        weight = next(float(v) for p, v in found.items() if p.role == "weight_sum")
        return {p.parameter: v for p, v in found.items() if p.role == "gradient" and p.parameter}, weight

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour; fewer rows than a session's are evaluated as they are."""
        rows, batch = len(batch[SAMPLE_WEIGHTS]), self._with_features(batch)
        results = self._run("eval", batch) if rows == self.batch_size else self._evaluate_rows(batch, rows)
        loss_sum, weight_sum, metrics = sums_of(self._graph("eval"), results).read()
        outputs = {
            p.name: np.array(results[p.name].numpy()) for p in self._ports("eval", "outputs") if p.role == "output"
        }
        return Evaluation(loss_sum, weight_sum, metrics, outputs)

    def parameters(self, *, copy: bool = True) -> dict[str, Array]:
        """The trained parameters, or the averages where those are shown."""
        if self._shows_averages:
            return self.averages(copy=copy)
        return {p.name: self._store.read(p.name, copy=copy) for p in self.manifest.parameters}

    def set_parameters(self, values: Arrays) -> None:
        """Replace the named parameters."""
        for name, value in values.items():
            self._store.write(name, value)

    def parameter_vector(self, *, trainable_only: bool) -> Array:
        """The trained parameters in one float32 vector."""
        self._require_trainable_only(trainable_only)
        return pack(self.manifest, self.parameters())

    def set_parameter_vector(self, vector: Array, *, trainable_only: bool) -> None:
        """Replace the trained parameters by those of a vector."""
        self._require_trainable_only(trainable_only)
        self.set_parameters(unpack(self.manifest, vector))

    def buffers(self) -> dict[str, Array]:
        """Copies of the trained running statistics."""
        return {b.name: self._store.read(f"{b.name}/{STATISTIC_SLOT}") for b in self.manifest.buffers}

    def set_buffers(self, values: Arrays) -> None:
        """Replace the named running statistics."""
        for name, value in values.items():
            self._store.write(f"{name}/{STATISTIC_SLOT}", value)

    def state(self, *, copy: bool = True) -> dict[str, Array]:
        """The optimizer state, keyed `parameter/slot`."""
        keys = dict.fromkeys(key_of(p) or "" for p in self._ports("train") if p.role == "state")
        return {key: self._store.read(key, copy=copy) for key in keys}

    def set_state(self, values: Arrays) -> None:
        """Replace the optimizer state, and empty the accumulators."""
        for key, value in values.items():
            self._store.write(key, value)
        self._clear_accumulators()

    def average(self, weight: float) -> None:
        """average + weight (parameter - average) for each parameter; the first call copies the parameters."""
        if self.has_averages:
            (port,) = self.manifest.graph("average").named("average_weight")
            self._run("average", {port.name: np.array(weight, port.dtype)})
        else:
            self.set_averages(self.parameters(copy=False))

    def averages(self, *, copy: bool = True) -> dict[str, Array]:
        """The averages; empty before the first `average`."""
        names = [p.name for p in self.manifest.parameters] if self.has_averages else []
        return {name: self._store.read(f"{name}/{AVERAGE_SLOT}", copy=copy) for name in names}

    def set_averages(self, values: Arrays) -> None:
        """Replace the averages of all parameters; an empty mapping forgets them."""
        for name, value in values.items():
            self._store.write(f"{name}/{AVERAGE_SLOT}", value)
        self.has_averages = bool(values)

    def show_averages(self, shown: bool) -> None:
        """Whether `evaluate` and `parameters` read the averages in the place of the parameters."""
        self._shows_averages = shown

    def close(self) -> None:
        """Release sessions and buffers."""
        self._runners.clear()
        for opened in self._sessions.values():
            opened.close()

    # ----- helpers -----

    def _make_store(self, initial: Mapping[str, Array]) -> BoundStore | ValueStore:
        entry, graphs = provider(self._asked.provider), self.manifest.every_graph
        if entry.updates_on:
            return SplitStore(initial, fixed=always_in_place(g for role, g in graphs if role in ("update", "average")))
        if entry.binding == "values":
            return ValueStore(initial)
        return BoundStore(initial, device_of(self._asked), always_in_place(graph for _, graph in graphs))

    def _require_trainable_only(self, trainable_only: bool) -> None:
        if not trainable_only:
            raise ConfigError(
                "the frozen weights of a native artifact are constants of its graphs, so a parameter vector holds the "
                "trained ones alone. Leave trainable_only as it is, or export with the generator ort-training."
            )

    def _with_features(self, batch: Arrays) -> Arrays:
        """The batch with features in the place of the inputs, where the artifact has a trunk."""
        inputs = [p.name for p in self.manifest.inputs]
        if not self.manifest.features or not any(name in batch for name in inputs):
            return batch
        rows = len(batch[inputs[0]])
        features = self.features(pad({name: batch[name] for name in inputs}, rows, self.batch_size))
        return {
            **{name: array for name, array in batch.items() if name not in inputs},
            **{name: array[:rows] for name, array in features.items()},
        }

    def _agreed(self, *, finite: bool) -> bool:
        """Whether gradients are finite in all that train together."""
        return finite

    def _clear_accumulators(self) -> None:
        self._store.clear_accumulators()
        self._magnitude = None

    @property
    def _scale(self) -> float:
        """By which the gradient graph's sums are too large."""
        return self.loss_scale.scale if self._scales else 1.0

    def _graph(self, role: GraphRole) -> GraphFile:
        return graph_of(role, self.manifest, self._asked)

    @property
    def _first(self) -> OpenSession:
        return next(iter(self._sessions.values()))

    def _sizes(self, role: GraphRole, feeds: Arrays) -> Mapping[str, int]:
        return sizes_of(feeds, self._ports(role), self.sizes)

    def _run(self, role: GraphRole, feeds: Arrays) -> dict[str, Any]:
        sizes, averages = self._sizes(role, feeds), self._shows_averages and role == "eval"
        place = (self._label(role, sizes), averages)
        if place not in self._runners:
            opened, graph = self._open(role, sizes), self._graph(role)
            graph = on_averages(graph) if averages else graph
            self._runners[place] = (
                ValueRunner(opened, graph, self._store)
                if isinstance(self._store, ValueStore)
                or (isinstance(self._store, SplitStore) and opened.provider.binding == "values")
                else BoundRunner(opened, graph, self._store)
            )
        with running(self._open(role, sizes), role):
            return self._runners[place].run(feeds)

    def _evaluate_rows(self, batch: Arrays, rows: int) -> dict[str, Any]:
        """The evaluation graph on another number of rows, in a session for this one run: a loss over the whole batch
        has no padding.
        """
        graph = self._graph("eval")
        graph = on_averages(graph) if self._shows_averages else graph
        feeds = {p.name: batch[p.name] if (key := key_of(p)) is None else self._store.read(key) for p in graph.inputs}
        opened = self._session("eval", {**self._sizes("eval", batch), BATCH: rows})
        names = [p.name for p in graph.outputs]
        values = {n: runtime().OrtValue.ortvalue_from_numpy(np.asarray(v, order="C")) for n, v in feeds.items()}
        with running(opened, "eval"):
            results = opened.session.run_with_ort_values(names, values, *run_options(opened))
        opened.close()
        return dict(zip(names, results, strict=True))

    def _open(self, role: GraphRole, sizes: Mapping[str, int]) -> OpenSession:
        label = self._label(role, sizes)
        if label not in self._sessions:
            self._sessions[label] = self._session(role, sizes)
        return self._sessions[label]

    def _label(self, role: GraphRole, sizes: Mapping[str, int]) -> str:
        """The role, and behind it the sizes that vary; a graph over parameters alone has none."""
        fixed = all(isinstance(d, int) for p in self._ports(role) for d in p.shape)
        varying = {d: n for d, n in sizes.items() if any(s[d] != n for s in self.sizes)}
        return role if fixed else " ".join([role, *(f"{d}={n}" for d, n in varying.items())])

    def _session(self, role: GraphRole, dimensions: Mapping[str, int]) -> OpenSession:
        graph = self._graph(role)
        # A random input may have `batch*sequence` rows, which the runtime takes for another dimension.
        composed = {d: dimension_size(d, dimensions) for p in graph.inputs for d in p.shape}
        return open_session(
            self._directory / graph.file,
            execution_of(role, self._asked),
            dimensions={**dimensions, **{d: n for d, n in composed.items() if isinstance(d, str) and n}},
            shared_arena=True,
            frozen="float32" if self.manifest.frozen_weights is None else self.manifest.frozen_weights.precision,
            # What the backward pass reads is computed apart: so must be what it is a copy of.
            without=ROUNDING_FUSIONS if self._asked.recompute and role in ("train", "gradients") else (),
            hashes=self.manifest.files,
        )

    def _ports(self, role: GraphRole, side: str = "inputs") -> tuple[Port, ...]:
        graph = self._graph(role)
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
        shapes = {p.name: p.shape for p in self.manifest.parameters}
        for port in (*self._ports("train"), *self._ports("gradients")):
            if port.role in ("state", "accumulator"):
                values[key_of(port) or ""] = np.zeros(shapes[port.parameter or ""], port.dtype)
        return values
