"""The engine of the native generator: the artifact's graphs on ordinary inference sessions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ConfigError
from onnxft.manifest import SAMPLE_WEIGHTS, GraphRole, Manifest
from onnxft.memory import peak_resident_bytes
from onnxft.runtime.batches import pad
from onnxft.runtime.engine import Evaluation, Hyper, Placement, Sums
from onnxft.runtime.execution import Execution
from onnxft.runtime.graph_runs import GraphRuns
from onnxft.runtime.keys import AVERAGE_SLOT, STATISTIC_SLOT, key_of
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.native_values import scalars, sums_of
from onnxft.runtime.parameter_vector import pack, unpack
from onnxft.runtime.precision import require_precision, updates_apart
from onnxft.runtime.providers import provider
from onnxft.runtime.sizes import Sizes, combined

_UPDATE: tuple[GraphRole, ...] = ("update",)
_CLIPPED_UPDATE: tuple[GraphRole, ...] = ("clip", "update")


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
        """Read the initial parameters and open the training graph; the other graphs are opened when first needed.

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
        self._asked = asked or Execution()
        require_precision(provider(self._asked.provider), self._asked)
        self.loss_scale = LossScale()
        self._scales = self._asked.precision == "float16"
        self._magnitude: Any = None
        self.has_averages = self._shows_averages = False
        self._graphs = GraphRuns(directory, manifest, self._asked, self.sizes)
        self._store = self._graphs.store

    @property
    def placement(self) -> Placement:
        """What was asked for and what runs, over the graphs opened so far."""
        return self._graphs.placement

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory of this process."""
        return peak_resident_bytes()

    def features(self, batch: Arrays) -> dict[str, Array]:
        """What the trunk computes of a whole batch's inputs."""
        results = self._graphs.run("trunk", {p.name: batch[p.name] for p in self.manifest.inputs})
        return {name: value.numpy() for name, value in results.items()}

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch: in one run, or in two (see `updates_apart`)."""
        if updates_apart(self._asked):
            sums = self.accumulate(batch)
            self.update(hyper, sums.read()[1])
            return sums
        graph = self._graphs.graph("train")
        feeds = {**self._with_features(batch), **scalars(graph.inputs, hyper, self.loss_scale.skipped)}
        return sums_of(graph, self._graphs.run("train", feeds))

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch to the accumulators, in float16 times the loss scale."""
        batch = self._with_features(batch)
        results = self._graphs.run("gradients", self.loss_scale.weighted(batch) if self._scales else batch)
        self._magnitude = results.get("magnitude")
        return sums_of(self._graphs.graph("gradients"), results, self._scale)

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators over `weight_sum`; empties them.

        In float16 it is left out where they are not finite: what is not finite in one micro-batch stays so in the sum.
        """
        finite = not self._scales or self._agreed(finite=math.isfinite(float(self._magnitude.numpy())))
        if finite:
            for role in _CLIPPED_UPDATE if hyper.clips else _UPDATE:
                ports, skipped = self._graphs.graph(role).inputs, self.loss_scale.skipped
                self._graphs.run(role, scalars(ports, hyper, skipped, weight_sum * self._scale))
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
        found, ports = self._graphs.run_aside("gradients", batch), self._graphs.graph("gradients").outputs
        weight = next(float(found[p.name]) for p in ports if p.role == "weight_sum")
        return {p.parameter: found[p.name] for p in ports if p.role == "gradient" and p.parameter}, weight

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour; fewer rows than a session's are evaluated as they are."""
        rows, batch, averages = len(batch[SAMPLE_WEIGHTS]), self._with_features(batch), self._shows_averages
        results = (
            self._graphs.run("eval", batch, averages=averages)
            if rows == self.batch_size
            # A loss over the whole batch has no padding.
            else self._graphs.run_rows("eval", batch, rows, averages=averages)
        )
        graph = self._graphs.graph("eval")
        loss_sum, weight_sum, metrics = sums_of(graph, results).read()
        outputs = {p.name: np.array(results[p.name].numpy()) for p in graph.outputs if p.role == "output"}
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
        keys = dict.fromkeys(key_of(p) or "" for p in self._graphs.graph("train").inputs if p.role == "state")
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
            self._graphs.run("average", {port.name: np.array(weight, port.dtype)})
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
        self._graphs.close()

    # ----- helpers -----

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
