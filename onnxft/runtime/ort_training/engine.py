"""The engine of the ort-training generator: formulas and refusals; onnxruntime-training computes in a worker process.

An artifact is in one of two forms. The weighted one has onnxft's own loss, with row weights and sums. A standalone one
has onnxruntime-training's, the mean over the labels of a batch, so weights and short batches are refused for it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError, ConfigError, DataError, ProviderError
from onnxft.manifest import SAMPLE_WEIGHTS, GraphFile, GraphRole, Manifest
from onnxft.ort_training_environment import find_python
from onnxft.runtime.batches import why_unweighted
from onnxft.runtime.engine import Evaluation, Hyper, Placement, Sums
from onnxft.runtime.execution import Execution
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.ort_training.means import mean_sums, mean_weight
from onnxft.runtime.ort_training.process import CallError, WorkerProcess
from onnxft.runtime.parameter_vector import check_vector
from onnxft.runtime.sizes import Sizes, combined

_INSTEAD = "or export with the native generator."
_FILES: dict[str, GraphRole] = {
    "training": "ort_training",
    "evaluation": "ort_eval",
    "optimizer": "ort_optimizer",
    "checkpoint": "ort_checkpoint",
}
_SUMS = ("loss", "loss_sum", "weight_sum", "metric")


class OrtTrainingEngine:
    """Training by onnxruntime-training 1.19.2; see `onnxft.runtime.engine.Engine` for the methods."""

    loss_scale = LossScale()

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        asked: Execution | None = None,
        *,
        batch_size: int | None = None,
        dimensions: Sizes | None = None,
    ) -> None:
        """Start the worker, and open the training, evaluation and optimizer graphs on the checkpoint there.

        Raises:
            ProviderError: onnxruntime-training is absent, cannot open the graphs, or cannot run as asked.
            ArtifactError: a file is missing.
        """
        self._asked = asked or Execution()
        _check_asked(self._asked)
        self.manifest = manifest
        self.batch_size = batch_size or manifest.batch_size
        self.sizes = combined(manifest, self.batch_size, dimensions or {})
        self._training, self._evaluation = manifest.graph("ort_training"), manifest.graph("ort_eval")
        self.supports_weights = bool(self._evaluation.named("sample_weight"))
        self.weights_in_training = bool(self._training.named("sample_weight")) and not manifest.loss.scalar
        # Without sums in the graph the accuracy is counted here.
        counts = manifest.loss.kind == "cross_entropy" and not self._training.named("loss_sum", "outputs")
        self._scored = manifest.loss.output if counts else None
        self._unit = 0.0
        # A missing evaluation model would end the worker by a segmentation fault, not by an error.
        files = {name: str(_existing(directory, manifest, role)) for name, role in _FILES.items()}
        self._worker = WorkerProcess(find_python())
        try:
            self._open(files)
        except BaseException:
            self._worker.close()
            raise

    @property
    def placement(self) -> Placement:
        """The device asked for; the training API does not tell which nodes it runs."""
        provider, device = self._asked.provider, self._asked.device or 0
        return Placement(provider, provider, device=device, versions={"onnxruntime-training": self._worker.version})

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory of the worker process; None where the system does not tell."""
        peak: int | None = self._call("peak_bytes")[0]["bytes"]
        return peak

    # ----- training -----

    def features(self, batch: Arrays) -> dict[str, Array]:
        """None: this generator does not divide models."""
        return {}

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch."""
        arguments = self._update_arguments(hyper)
        sums = self._train("train", batch, normalizer=0.0)[0]
        self._call("optimizer_step", factor=1.0, **arguments)
        return sums

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch to the accumulators."""
        unit = self._unit_of(batch)
        if self._unit not in (0.0, unit):
            self._call("scale_gradients", factor=self._unit / unit)
        self._unit = unit
        return self._train("train", batch, normalizer=1.0)[0]

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators over `weight_sum`; empties them."""
        arguments = self._update_arguments(hyper)
        self._call("optimizer_step", factor=self._unit / weight_sum, **arguments)
        self._unit = 0.0

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the loss sum, and the weight sum; the accumulators stay as they are."""
        unit = np.float32(self._unit_of(batch))
        sums, results = self._train("gradients", batch, normalizer=1.0)
        found: dict[str, Array] = {p.name: results[f"gradient/{p.name}"] * unit for p in self.manifest.parameters}
        return found, sums.read()[1]

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour, over any number of rows."""
        if not self.supports_weights:
            self._require_plain(batch)
        names = [p.name for p in self._evaluation.outputs]
        _, results = self._call("evaluate", self._feeds(self._evaluation, batch), outputs=names)
        outputs = {p.name: results[p.name] for p in self._evaluation.named("output", "outputs")}
        return Evaluation(*self._sums(self._evaluation, results, batch).read(), outputs)

    # ----- parameters and state -----

    def parameters(self, *, copy: bool = True) -> dict[str, Array]:
        """Copies of the trained parameters."""
        _, found = self._call("parameters", trained=True)
        return {p.name: found[p.name] for p in self.manifest.parameters}

    def set_parameters(self, values: Arrays) -> None:
        """Replace the named parameters."""
        self._call("set_parameters", values)

    def parameter_vector(self, *, trainable_only: bool) -> Array:
        """The parameters in one float32 vector, by the package's own call and in its order, which is the manifest's."""
        try:
            return self._worker.call("parameter_vector", trainable_only=trainable_only)[1]["vector"]
        except CallError as err:
            raise ConfigError(f"there is no parameter vector of '{self.manifest.name}': {err}.") from err

    def set_parameter_vector(self, vector: Array, *, trainable_only: bool) -> None:
        """Replace the parameters by those of a vector."""
        check_vector(vector, self.parameter_vector(trainable_only=trainable_only).size)
        self._call("set_parameter_vector", {"vector": vector}, trainable_only=trainable_only)

    def buffers(self) -> dict[str, Array]:
        """None: this generator keeps running statistics frozen."""
        return {}

    def set_buffers(self, values: Arrays) -> None:
        """Nothing to replace; see `buffers`."""

    def state(self, *, copy: bool = True) -> dict[str, Array]:
        """Copies of the optimizer state: `parameter/slot`, and `step` where the optimizer counts."""
        return self._call("optimizer_state")[1]

    def set_state(self, values: Arrays) -> None:
        """Replace the whole optimizer state, and empty the accumulators."""
        self._call("set_optimizer_state", values)
        self._unit = 0.0

    def average(self, weight: float) -> None:
        """Refused: this generator writes no graph for it."""
        raise ConfigError(f"the ort-training generator keeps no averages of the parameters. Leave them out, {_INSTEAD}")

    @property
    def has_averages(self) -> bool:
        """Never; see `average`."""
        return False

    def averages(self, *, copy: bool = True) -> dict[str, Array]:
        """None; see `average`."""
        return {}

    def set_averages(self, values: Arrays) -> None:
        """Nothing to replace; see `average`."""

    def show_averages(self, shown: bool) -> None:
        """Nothing to show; see `average`."""

    def close(self) -> None:
        """End the worker process."""
        self._worker.close()

    # ----- helpers -----

    def _open(self, files: dict[str, str]) -> None:
        provider, device = self._asked.provider, self._asked.device or 0
        if provider not in self._worker.devices:
            raise ProviderError(
                f"onnxruntime-training {self._worker.version} in '{find_python()}' runs on "
                f"{', '.join(self._worker.devices)} only, not on '{provider}': its package for CUDA 11.8 is another. "
                "Make an environment with `onnxft setup ort-training --cuda`, or use --provider cpu."
            )
        place = f"{provider}:{device}" if device else provider
        try:
            names, _ = self._worker.call("open", files=files, device=place, threads=self._asked.threads)
        except CallError as err:
            raise ProviderError(
                f"onnxruntime-training cannot open the artifact '{self.manifest.name}': {err}. Export it again with "
                f"the onnxruntime-training of '{find_python()}'."
            ) from err
        for kind, graph in (("training", self._training), ("evaluation", self._evaluation)):
            listed = ([p.name for p in graph.inputs], [p.name for p in graph.outputs])
            missing = [n for found, said in zip(names[kind], listed, strict=True) for n in {*found} ^ {*said}]
            if missing:
                raise ArtifactError(
                    f"the manifest of '{self.manifest.name}' and its {kind} graph disagree about {sorted(missing)}. "
                    "Export the artifact again."
                )

    def _call(
        self, name: str, arrays: Arrays | None = None, /, **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        try:
            return self._worker.call(name, arrays, **arguments)
        except CallError as err:
            raise ProviderError(
                f"onnxruntime-training refused '{name}': {err}. Export the artifact again, {_INSTEAD}"
            ) from err

    def _train(self, call: str, batch: Arrays, *, normalizer: float) -> tuple[Sums, dict[str, Array]]:
        """A pass of the training graph; with the normalizer 0 its loss is the mean, with 1 the sum."""
        if not self.weights_in_training:
            self._require_plain(batch)
        rows = len(batch[self._training.named("input")[0].name])
        if rows != self.batch_size:
            raise DataError(f"the batch has {rows} rows; a step of this session takes exactly {self.batch_size}.")
        feeds = self._feeds(self._training, batch)
        feeds |= {p.name: np.array(normalizer, p.dtype) for p in self._training.named("normalizer")}
        wanted = [p.name for p in self._training.outputs if p.role in _SUMS or p.name == self._scored]
        _, results = self._call(call, feeds, outputs=wanted)
        return self._sums(self._training, results, batch), results

    def _feeds(self, graph: GraphFile, batch: Arrays) -> dict[str, Array]:
        return {p.name: batch[p.name] for p in graph.inputs if p.role != "normalizer"}

    def _sums(self, graph: GraphFile, results: Arrays, batch: Arrays) -> Sums:
        if not graph.named("loss_sum", "outputs"):
            sums = mean_sums(self.manifest, graph, results, batch)
        else:
            loss, weight = (float(results[graph.named(r, "outputs")[0].name]) for r in ("loss_sum", "weight_sum"))
            metrics = {p.slot or p.name: float(results[p.name]) for p in graph.named("metric", "outputs")}
            sums = (loss, weight, metrics)
        return Sums(lambda: sums)

    def _unit_of(self, batch: Arrays) -> float:
        """What a pass's gradients are multiplied by to be those of the loss sum: they may be those of a mean."""
        return 1.0 if self._training.named("normalizer") else mean_weight(self.manifest, batch)

    def _require_plain(self, batch: Arrays) -> None:
        """DataError where the loss, a mean over the batch, cannot say what is asked for."""
        weights = batch.get(SAMPLE_WEIGHTS)
        if weights is not None and not np.all(weights == 1):
            raise DataError(
                f"'{SAMPLE_WEIGHTS}' are not all 1, but {why_unweighted(self.manifest)}. Leave the weights and a short "
                f"last batch out, export without --standalone, {_INSTEAD}"
            )

    def _update_arguments(self, hyper: Hyper) -> dict[str, float]:
        """Arguments of the worker's optimizer step; ConfigError for what its optimizer graph has no input for."""
        rates = set(hyper.lr.values())
        if len(rates) > 1:
            raise ConfigError(
                f"lr differs by group ({hyper.lr}), but onnxruntime-training's optimizer knows one learning rate. "
                f"Give all groups the same, {_INSTEAD}"
            )
        baked = self.manifest.optimizer.weight_decay
        for group, decay in hyper.weight_decay.items():
            if decay != baked:
                raise ConfigError(
                    f"weight_decay of group '{group}' is {decay}, but it was fixed at {baked} when the artifact was "
                    f"exported: onnxruntime-training takes only the learning rate at run time. Use {baked}, export "
                    f"again, {_INSTEAD}"
                )
        max_norm, own = hyper.max_norm, self.manifest.optimizer.options.get("max_norm")
        if own is not None:
            if max_norm not in (own, math.inf):
                raise ConfigError(
                    f"max_norm is {max_norm}, but the optimizer graph clips to {own} already, fixed when the artifact "
                    f"was exported. Leave max_norm out, export again, {_INSTEAD}"
                )
            max_norm = math.inf  # clipped there
        return {"lr": rates.pop(), "max_value": hyper.max_value, "max_norm": max_norm}


def _check_asked(asked: Execution) -> None:
    if asked.provider not in ("cpu", "cuda"):
        raise ProviderError(
            f"provider '{asked.provider}' cannot run this artifact: onnxruntime-training's graphs run on 'cpu', and on "
            f"'cuda' with its package for that. Use --provider cpu, {_INSTEAD}"
        )
    if asked.options:
        raise ProviderError(f"onnxruntime-training takes no provider options, not {', '.join(asked.options)}.")
    if asked.precision != "float32":
        raise ProviderError(
            f"onnxruntime-training's graphs run in float32, not in {asked.precision}. Leave that out, {_INSTEAD}"
        )
    if asked.provider == "cpu" and asked.device:
        raise ProviderError(f"the provider 'cpu' has one device, not a device {asked.device}. Leave that out.")
    if asked.strict:
        raise ProviderError(
            f"strict asks where each node runs, which onnxruntime-training does not tell. Leave it out, {_INSTEAD}"
        )


def _existing(directory: Path, manifest: Manifest, role: GraphRole) -> Path:
    path = directory / manifest.graph(role).file
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing. Copy or export the artifact again.")
    return path.resolve()
