"""The engine of the ort-training generator: onnxruntime.training.api, in the environment that has it.

What it cannot do it refuses with the reason: its loss is a plain mean over the rows, its optimizer knows one
learning rate, the decay is fixed at export, nothing is clipped, and it runs on the CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxft.errors import ArtifactError, ConfigError, DataError, ProviderError
from onnxft.manifest import SAMPLE_WEIGHTS, GraphRole, Manifest
from onnxft.runtime.batches import Sizes, combined
from onnxft.runtime.engine import Array, Arrays, Evaluation, Hyper, Placement, Sums
from onnxft.runtime.execution import Execution
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.ort_training_state import read_state, write_state

_INSTEAD = "or export with the native generator."


class OrtTrainingEngine:
    """Training by onnxruntime-training 1.19.2; see `onnxft.runtime.engine.Engine` for the methods."""

    supports_weights = False
    weights_in_training = False
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
        """Open the training, evaluation and optimizer graphs on the checkpoint.

        Raises:
            ProviderError: onnxruntime-training is absent, cannot open the graphs, or another provider is asked for.
            ArtifactError: a file is missing.
            ConfigError: a dimension has several sizes.
        """
        asked = asked or Execution()
        if asked.provider != "cpu":
            raise ProviderError(
                f"provider '{asked.provider}' cannot run this artifact: onnxruntime-training's graphs run on 'cpu' "
                f"only. Use --provider cpu, {_INSTEAD}"
            )
        if asked.options:
            raise ProviderError(f"onnxruntime-training takes no provider options, not {', '.join(asked.options)}.")
        if asked.precision != "float32" or asked.device:
            raise ProviderError(
                f"onnxruntime-training's graphs run in float32 on one device, not in {asked.precision} on device "
                f"{asked.device or 0}. Leave that out, {_INSTEAD}"
            )
        if asked.strict:
            raise ProviderError(
                f"strict asks where each node runs, which onnxruntime-training does not tell. Leave it out, {_INSTEAD}"
            )
        self.manifest = manifest
        self.batch_size = batch_size or manifest.batch_size
        self.sizes = combined(manifest, self.batch_size, dimensions or {})
        if len(self.sizes) > 1:
            raise ConfigError(
                "a dimension has several sizes, but the loss of the ort-training generator is a plain mean over a "
                f"batch, so that gradients add up exactly for batches of one size only. Give one size, {_INSTEAD}"
            )
        # A missing evaluation model would end the process by a segmentation fault, not by an error.
        self._paths = {role: _existing(directory, manifest, role) for role in _ROLES}
        self._api = training_api()
        self._session_options = _session_options(asked.threads)
        self._label = manifest.graph("ort_training").named("label")[0]
        self._weight = float(math.prod([self.batch_size, *(int(d) for d in self._label.shape[1:])]))
        self._accumulated = 0
        self._open(self._paths["ort_checkpoint"])

    @property
    def placement(self) -> Placement:
        """The CPU; the training API does not tell which nodes it runs."""
        version = importlib.import_module("onnxruntime").__version__
        return Placement("cpu", "cpu", versions={"onnxruntime-training": version})

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch."""
        self._set_hyper(hyper)
        sums = self._add_gradients(batch)
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return sums

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch's mean loss to the accumulators."""
        sums = self._add_gradients(batch)
        self._accumulated += 1
        return sums

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators over `weight_sum`; empties them."""
        self._set_hyper(hyper)
        # The accumulators hold a sum of means, each over one batch; the optimizer graph divides by nothing.
        if weight_sum != self._weight:
            scale = np.float32(self._weight / weight_sum)
            self._write_gradients({name: grad * scale for name, grad in self._read_gradients().items()})
        self._optimizer.step()
        self._clear()

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the loss sum, and the weight sum; the accumulators stay as they are."""
        saved = self._read_gradients() if self._accumulated else {}
        self._module.lazy_reset_grad()
        self._add_gradients(batch)
        found: dict[str, Array] = {
            name: grad * np.float32(self._weight) for name, grad in self._read_gradients().items()
        }
        if saved:
            self._write_gradients(saved)
        else:
            self._module.lazy_reset_grad()
        return found, self._weight

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour, over any number of rows."""
        loss, outputs = self._run(batch, train=False)
        return Evaluation(*self._sums(loss, outputs, batch).read(), outputs)

    def parameters(self) -> dict[str, Array]:
        """Copies of the trained parameters."""
        return {p.name: np.array(self._state.parameters[p.name].data) for p in self.manifest.parameters}

    def set_parameters(self, values: Arrays) -> None:
        """Replace the named parameters."""
        for name, value in values.items():
            self._state.parameters[name].data = np.ascontiguousarray(value)

    def buffers(self) -> dict[str, Array]:
        """None: this generator keeps running statistics frozen."""
        return {}

    def set_buffers(self, values: Arrays) -> None:
        """Nothing to replace; see `buffers`."""

    def state(self) -> dict[str, Array]:
        """Copies of the optimizer state: `parameter/slot`, and `step` where the optimizer counts."""
        with tempfile.TemporaryDirectory() as scratch:
            return read_state(self._save(Path(scratch) / "checkpoint").read_bytes())

    def set_state(self, values: Arrays) -> None:
        """Replace the whole optimizer state, and empty the accumulators."""
        parameters = self.parameters()
        # The file leaves out a step count of 0, so there would be no place for the new one before a step.
        self._optimizer.set_learning_rate(0.0)
        self._optimizer.step()
        with tempfile.TemporaryDirectory() as scratch:
            path = self._save(Path(scratch) / "checkpoint")
            path.write_bytes(write_state(path.read_bytes(), values))
            self._open(path)
        self.set_parameters(parameters)

    def average(self, weight: float) -> None:
        """Refused: this generator writes no graph for it."""
        raise ConfigError(f"the ort-training generator keeps no averages of the parameters. Leave them out, {_INSTEAD}")

    @property
    def has_averages(self) -> bool:
        """Never; see `average`."""
        return False

    def averages(self) -> dict[str, Array]:
        """None; see `average`."""
        return {}

    def set_averages(self, values: Arrays) -> None:
        """Nothing to replace; see `average`."""

    def show_averages(self, shown: bool) -> None:
        """Nothing to show; see `average`."""

    def close(self) -> None:
        """Release sessions and buffers."""
        del self._optimizer, self._module, self._state

    # ----- helpers -----

    def _open(self, checkpoint: Path) -> None:
        try:
            self._state = self._api.CheckpointState.load_checkpoint(checkpoint)
            self._module = self._api.Module(
                self._paths["ort_training"],
                self._state,
                self._paths["ort_eval"],
                session_options=self._session_options,
            )
            self._optimizer = self._api.Optimizer(self._paths["ort_optimizer"], self._module)
        except Exception as err:  # the package raises RuntimeError and the runtime's own classes
            raise ProviderError(
                f"onnxruntime-training cannot open the artifact '{self.manifest.name}': {str(err).splitlines()[0]}. "
                "Export it again with the onnxruntime-training that is installed here."
            ) from err
        self._clear()

    def _save(self, path: Path) -> Path:
        self._api.CheckpointState.save_checkpoint(self._state, path, include_optimizer_state=True)
        return path

    def _add_gradients(self, batch: Arrays) -> Sums:
        """A training pass, which adds the gradients of the mean loss to the accumulators."""
        rows = len(batch[self._label.name])
        if rows != self.batch_size:
            raise DataError(f"the batch has {rows} rows; a step of this session takes exactly {self.batch_size}.")
        loss, outputs = self._run(batch, train=True)
        return self._sums(loss, outputs, batch)

    def _run(self, batch: Arrays, *, train: bool) -> tuple[float, dict[str, Array]]:
        """Mean loss and {output: array}."""
        weights = batch.get(SAMPLE_WEIGHTS)
        if weights is not None and not np.all(weights == 1):
            raise DataError(
                f"'{SAMPLE_WEIGHTS}' are not all 1, but the loss of the ort-training generator is a plain mean over "
                f"the rows. Leave the weights and a short last batch out, {_INSTEAD}"
            )
        graph = self.manifest.graph("ort_eval")
        loss, *outputs = self._module.train(train)(*(np.ascontiguousarray(batch[p.name]) for p in graph.inputs))
        return float(loss), {p.name: value for p, value in zip(graph.outputs, outputs, strict=True)}

    def _sums(self, loss: float, outputs: Arrays, batch: Arrays) -> Sums:
        """The mean loss and the metrics as sums over the labels."""
        labels, metrics = batch[self._label.name], {}
        if self.manifest.loss.kind == "cross_entropy":
            predicted = np.argmax(outputs[self.manifest.loss.output], axis=1)
            metrics["accuracy"] = float(np.sum(predicted == labels))
        weight = float(labels.size)
        return Sums(lambda: (loss * weight, weight, metrics))

    def _set_hyper(self, hyper: Hyper) -> None:
        if hyper.max_norm != math.inf or hyper.max_value != math.inf:
            raise ConfigError(
                "gradients cannot be clipped: onnxruntime-training's optimizer graph takes them as they are. "
                f"Leave max_norm and max_value out, {_INSTEAD}"
            )
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
        self._optimizer.set_learning_rate(rates.pop())

    def _read_gradients(self) -> dict[str, NDArray[np.float32]]:
        return {p.name: np.array(self._state.parameters[p.name].grad) for p in self.manifest.parameters}

    def _write_gradients(self, values: Arrays) -> None:
        for name, value in values.items():
            # The public Parameter.grad is a copy; the buffer itself is behind it.
            self._state.parameters[name]._parameter.grad.update_inplace(np.ascontiguousarray(value))

    def _clear(self) -> None:
        self._accumulated = 0
        self._module.lazy_reset_grad()


_ROLES: tuple[GraphRole, ...] = ("ort_training", "ort_eval", "ort_optimizer", "ort_checkpoint")


def training_api() -> ModuleType:
    """onnxruntime.training.api; ProviderError where onnxruntime-training is not what is installed."""
    # onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
    if importlib.util.find_spec("torch") is None:
        sys.modules.setdefault("onnxruntime.training.optim", ModuleType("onnxruntime.training.optim"))
    try:
        return importlib.import_module("onnxruntime.training.api")
    except ImportError as err:
        raise ProviderError(
            f"this artifact is run by onnxruntime-training, which cannot be imported here ({err}). Run the command in "
            "the environment that has it: `python3.11 -m venv ort-training`, `ort-training/bin/pip install "
            "'onnxft[ort-training]'`."
        ) from err


def _session_options(threads: int | None) -> Any:
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _existing(directory: Path, manifest: Manifest, role: GraphRole) -> Path:
    path = directory / manifest.graph(role).file
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing. Copy or export the artifact again.")
    return path
