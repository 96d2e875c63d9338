"""`TrainSession`: the face of a training run, the same for every engine and provider."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from onnxft.errors import ArtifactError, ConfigError, DataError, near
from onnxft.manifest import GraphFile, GraphRole, Manifest
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.batches import LABELS, SAMPLE_WEIGHTS, check_batch, draw, pad
from onnxft.runtime.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from onnxft.runtime.engine import Array, Arrays, Engine, Hyper, Placement, Sums
from onnxft.runtime.inference import write_inference_model
from onnxft.runtime.native import NativeEngine


class StepResult:
    """Loss and metrics of one step; read from the device when asked for."""

    def __init__(self, sums: Sums) -> None:
        """Wrap the sums of a run."""
        self._sums = sums

    @cached_property
    def _values(self) -> tuple[float, float, dict[str, float]]:
        return self._sums.read()

    @property
    def weight_sum(self) -> float:
        """Total weight of the rows."""
        return self._values[1]

    @property
    def loss(self) -> float:
        """Weighted mean of the loss before the step; NaN for a batch of weight 0."""
        return _mean(self._values[0], self._values[1])

    @property
    def metrics(self) -> dict[str, float]:
        """Weighted means of the metrics that the training graph computes."""
        return {name: _mean(value, self._values[1]) for name, value in self._values[2].items()}


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation."""

    loss: float
    metrics: dict[str, float]
    outputs: dict[str, Array]
    """{output name: (rows, ...) array}"""


class TrainSession:
    """Fine-tuning of one artifact on one provider.

    Batches are {input name: (rows, ...) array, "labels": (rows, ...) array}, optionally with
    "sample_weights" (rows,); up to `batch_size` rows for a step, any number for an evaluation.
    """

    def __init__(
        self,
        artifact: str | Path,
        provider: str = "cpu",
        *,
        threads: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        """Check the artifact and open its training graph.

        Args:
            artifact: directory written by `onnxft export`.
            provider: execution provider, see `onnxft doctor`.
            threads: threads inside an operator; None leaves it to the runtime.
            batch_size: rows of a step; None takes the artifact's.
            seed: of the random inputs (Dropout and the like).
            provider_options: options handed to the provider over the built-in ones.

        Raises:
            ArtifactError: the artifact is missing, damaged or of another schema.
            ProviderError: the provider is absent or cannot run the graph.
            ConfigError: batch_size, threads or seed is out of range.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        self.directory = Path(artifact)
        self.manifest: Manifest = load_artifact(self.directory)
        self.seed = seed
        self.step_count = 0
        self._micro_step = 0
        self._pending: list[StepResult] = []
        self._engine = self._open(provider, threads, batch_size, provider_options)

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._engine.batch_size

    @property
    def placement(self) -> Placement:
        """Which provider was asked for and what runs where."""
        return self._engine.placement

    @property
    def supports_weights(self) -> bool:
        """Whether rows can be weighted, and so a short batch padded exactly."""
        return self._engine.supports_weights

    # ----- training -----

    def step(
        self,
        batch: Arrays,
        *,
        lr: float | Mapping[str, float],
        weight_decay: float | Mapping[str, float] | None = None,
        max_norm: float = math.inf,
        max_value: float = math.inf,
    ) -> StepResult:
        """One optimizer step on one batch.

        Args:
            batch: at most `batch_size` rows.
            lr: learning rate, or one for each parameter group.
            weight_decay: as lr; None takes the artifact's.
            max_norm: global norm to which the mean gradient is clipped.
            max_value: absolute value to which its elements are clipped, before the norm.

        Raises:
            DataError: the batch does not fit the model.
            ConfigError: a rate is out of range, or gradients are still accumulated.
        """
        if self._pending:
            raise ConfigError("gradients are accumulated: call update() before the next step().")
        if max_norm != math.inf or max_value != math.inf:
            result = self.accumulate(batch)
            self.update(lr=lr, weight_decay=weight_decay, max_norm=max_norm, max_value=max_value)
            return result
        hyper = self._hyper(lr, weight_decay)
        result = StepResult(self._engine.step(self._complete(batch, self._train_graph), hyper))
        self.step_count += 1
        return result

    def accumulate(self, batch: Arrays) -> StepResult:
        """Add the gradients of one micro-batch; `update` divides by the total weight."""
        result = StepResult(self._engine.accumulate(self._complete(batch, self._train_graph)))
        self._pending.append(result)
        self._micro_step += 1
        return result

    def update(
        self,
        *,
        lr: float | Mapping[str, float],
        weight_decay: float | Mapping[str, float] | None = None,
        max_norm: float = math.inf,
        max_value: float = math.inf,
    ) -> None:
        """One optimizer step from what was accumulated; arguments as in `step`."""
        if not self._pending:
            raise ConfigError("nothing is accumulated: call accumulate() before update().")
        hyper = self._hyper(lr, weight_decay, max_norm, max_value)
        weight = sum(r.weight_sum for r in self._pending)
        if weight <= 0:
            raise DataError("all rows since the last update have weight 0, so there is no mean gradient.")
        self._engine.update(hyper, weight)
        self._pending.clear()
        self._micro_step = 0
        self.step_count += 1

    def gradients(self, batch: Arrays) -> dict[str, Array]:
        """{parameter: gradient of the mean loss}, without changing anything."""
        sums, weight = self._engine.gradients(self._complete(batch, self._train_graph))
        return {name: np.asarray(value / weight, value.dtype) for name, value in sums.items()}

    # ----- evaluation -----

    def evaluate(self, batch: Arrays) -> Scores:
        """Loss, metrics and outputs in inference behaviour, over any number of rows."""
        return self._evaluate(batch, labels=True)

    def predict(self, inputs: Arrays) -> dict[str, Array]:
        """{output: (rows, ...) array} in inference behaviour, over any number of rows; no labels needed."""
        return self._evaluate(inputs, labels=False).outputs

    # ----- parameters, checkpoints, export -----

    @property
    def parameters(self) -> dict[str, Array]:
        """{name: value} of the trained parameters, copies."""
        return self._engine.parameters()

    def set_parameters(self, values: Arrays) -> None:
        """Replace trained parameters; those not named keep their value.

        Raises:
            ArtifactError: a name is unknown, or a shape, type or value does not fit; nothing is changed then.
        """
        known = {p.name: p for p in self.manifest.parameters}
        typed = {}
        for name, value in values.items():
            if name not in known:
                raise ArtifactError(f"'{name}' is no trained parameter of '{self.manifest.name}'.{near(name, known)}")
            if np.shape(value) != known[name].shape:
                raise ArtifactError(f"'{name}' has the shape {list(known[name].shape)}, not {list(np.shape(value))}.")
            array = np.asarray(value)
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ArtifactError(f"the new value of '{name}' must be finite floating-point numbers.")
            typed[name] = array.astype(known[name].dtype)
        self._engine.set_parameters(typed)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write parameters, optimizer state and counters as a directory, whole or not at all."""
        if self._pending:
            raise ConfigError("gradients are accumulated: call update() before save_checkpoint().")
        checkpoint = Checkpoint(self.step_count, self.seed, self.manifest.name, self.manifest.optimizer.kind)
        write_checkpoint(Path(path), checkpoint, self._engine.parameters(), self._engine.state())

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same artifact; ArtifactError if it is damaged or of another."""
        checkpoint, parameters, state = read_checkpoint(Path(path))
        self._check_checkpoint(path, checkpoint, parameters, state)
        self._engine.set_parameters(parameters)
        self._engine.set_state(state)
        self.step_count, self.seed = checkpoint.step_count, checkpoint.seed
        self._pending.clear()
        self._micro_step = 0

    def export_model(self, path: str | Path) -> None:
        """Write the inference model with the current parameters; loadable by any ONNX Runtime."""
        write_inference_model(self.directory, self.manifest, self._engine.parameters(), Path(path))

    def close(self) -> None:
        """Release sessions and buffers."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ----- helpers -----

    def _open(
        self, provider: str, threads: int | None, batch_size: int | None, options: Mapping[str, str] | None
    ) -> Engine:
        if self.manifest.generator == "ort-training":
            from onnxft.runtime.ort_training import OrtTrainingEngine

            return OrtTrainingEngine(
                self.directory, self.manifest, provider, threads=threads, batch_size=batch_size, options=options
            )
        return NativeEngine(
            self.directory, self.manifest, provider, threads=threads, batch_size=batch_size, options=options
        )

    @property
    def _train_graph(self) -> GraphFile:
        return self._first("train", "ort_training")

    @property
    def _eval_graph(self) -> GraphFile:
        return self._first("eval", "ort_eval")

    def _first(self, *roles: GraphRole) -> GraphFile:
        return self.manifest.graph(next((r for r in roles if r in self.manifest.graphs), roles[0]))

    @property
    def _data_ports(self) -> tuple:  # type: ignore[type-arg]
        return (*self._eval_graph.named("input"), *self._eval_graph.named("label"))

    def _complete(self, batch: Arrays, graph: GraphFile) -> dict[str, Array]:
        checked, rows = check_batch(batch, self._data_ports, self.manifest.loss)
        if rows > self.batch_size:
            raise DataError(f"the batch has {rows} rows; this session takes at most {self.batch_size} (batch_size).")
        weights = checked.get(SAMPLE_WEIGHTS)
        if weights is not None and not weights.sum() > 0:
            raise DataError(f"all {rows} rows of the batch have weight 0, so there is no mean gradient.")
        complete = self._padded(checked, rows)
        return {
            **complete,
            **draw(graph.inputs, self.batch_size, seed=self.seed, step=self.step_count, micro_step=self._micro_step),
        }

    def _padded(self, batch: Arrays, rows: int) -> dict[str, Array]:
        if self.supports_weights:
            return pad(batch, rows, self.batch_size)
        if rows != self.batch_size or SAMPLE_WEIGHTS in batch:
            raise DataError(
                f"the '{self.manifest.generator}' generator cannot weight rows, so a batch must have exactly "
                f"{self.batch_size} rows and no '{SAMPLE_WEIGHTS}'; this one has {rows} rows."
            )
        return dict(batch)

    def _evaluate(self, batch: Arrays, *, labels: bool) -> Scores:
        loss = weight = 0.0
        metrics: dict[str, float] = {}
        outputs: dict[str, list[Array]] = {}
        for start, part in _parts(batch, self.batch_size):
            checked, rows = check_batch(part, self._data_ports, self.manifest.loss, labels=labels, first_row=start)
            complete = checked if labels else self._without_labels(checked, rows)
            result = self._engine.evaluate(pad(complete, rows, self.batch_size) if self.supports_weights else complete)
            loss, weight = loss + result.loss_sum, weight + result.weight_sum
            for name, value in result.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
            for name, array in result.outputs.items():
                outputs.setdefault(name, []).append(array[:rows])
        return Scores(
            _mean(loss, weight),
            {name: _mean(value, weight) for name, value in metrics.items()},
            {name: np.concatenate(arrays) for name, arrays in outputs.items()},
        )

    def _without_labels(self, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
        """Zero labels with weight 0, where only the outputs are asked for."""
        for port in self._eval_graph.named("label"):
            inputs[port.name] = np.zeros([rows, *(int(d) for d in port.shape[1:])], port.dtype)
        if self.supports_weights:
            inputs[SAMPLE_WEIGHTS] = np.zeros(rows, np.float32)
        return inputs

    def _hyper(
        self,
        lr: float | Mapping[str, float],
        weight_decay: float | Mapping[str, float] | None,
        max_norm: float = math.inf,
        max_value: float = math.inf,
    ) -> Hyper:
        decay = self.manifest.optimizer.weight_decay if weight_decay is None else weight_decay
        for name, value in (("max_norm", max_norm), ("max_value", max_value)):
            if not value > 0:
                raise ConfigError(f"{name} is {value}; it must be positive (infinity switches it off).")
        return Hyper(
            self._by_group("lr", lr), self._by_group("weight_decay", decay), self.step_count + 1, max_norm, max_value
        )

    def _by_group(self, name: str, value: float | Mapping[str, float]) -> dict[str, float]:
        groups = self.manifest.groups
        values = dict(value) if isinstance(value, Mapping) else dict.fromkeys(groups, value)
        if set(values) != set(groups):
            raise ConfigError(
                f"{name} must name each parameter group once ({', '.join(groups)}), not {', '.join(values)}."
            )
        for group, number in values.items():
            if not (math.isfinite(number) and number >= 0):
                raise ConfigError(f"{name} of group '{group}' is {number}; it must be finite and not negative.")
        return values

    def _check_checkpoint(self, path: str | Path, checkpoint: Checkpoint, parameters: Arrays, state: Arrays) -> None:
        if checkpoint.optimizer != self.manifest.optimizer.kind:
            raise ArtifactError(
                f"checkpoint '{path}' is of the optimizer '{checkpoint.optimizer}', the artifact has "
                f"'{self.manifest.optimizer.kind}'. Continue with the artifact '{checkpoint.artifact}'."
            )
        for kind, found, own in (
            ("parameter", parameters, self._engine.parameters()),
            ("state", state, self._engine.state()),
        ):
            for name in sorted({*found, *own}):
                if name not in found or name not in own or found[name].shape != own[name].shape:
                    problem = "is missing" if name not in found else "is unknown or has another shape"
                    raise ArtifactError(
                        f"checkpoint '{path}' does not fit the artifact '{self.manifest.name}': {kind} '{name}' "
                        f"{problem}. It was written for '{checkpoint.artifact}'."
                    )


def _parts(batch: Arrays, size: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """(first row, {name: at most `size` rows}) one after the other; at least one part."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    rows = max((len(a) for a in arrays.values() if a.ndim), default=0)
    for start in range(0, max(rows, 1), size):
        yield start, {name: array[start : start + size] if array.ndim else array for name, array in arrays.items()}


def _mean(total: float, weight: float) -> float:
    return total / weight if weight > 0 else math.nan


__all__ = ["LABELS", "SAMPLE_WEIGHTS", "Scores", "StepResult", "TrainSession"]
