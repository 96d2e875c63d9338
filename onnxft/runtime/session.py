"""`TrainSession`: the face of a training run, the same for every engine and provider."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from onnxft.errors import ConfigError, DataError
from onnxft.manifest import SAMPLE_WEIGHTS, Manifest
from onnxft.runtime.artifact import check_parameters, load_artifact
from onnxft.runtime.batches import (
    Sizes,
    check_batch,
    check_dimensions,
    check_statistics,
    combined,
    draw,
    pad,
    require_weight,
    sizes_of,
    why_unweighted,
)
from onnxft.runtime.checkpoint import Checkpoint, check_fits, read_checkpoint, write_checkpoint
from onnxft.runtime.engine import Array, Arrays, Engine, Placement
from onnxft.runtime.evaluation import data_ports, evaluate
from onnxft.runtime.inference import write_inference_model
from onnxft.runtime.native import NativeEngine
from onnxft.runtime.rates import Rate, check_rates
from onnxft.runtime.results import Scores, StepResult


class TrainSession:
    """Fine-tuning of one artifact on one provider.

    Batches are {input name: (rows, ...) array, "labels": (rows, ...) array}, without "labels" where the model computes
    its loss itself, and optionally with "sample_weights" (rows,); up to `batch_size` rows for a step, any number for an
    evaluation.
    """

    def __init__(
        self,
        artifact: str | Path,
        provider: str = "cpu",
        *,
        threads: int | None = None,
        batch_size: int | None = None,
        dimensions: Sizes | None = None,
        seed: int = 0,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        """Check the artifact and open its training graph.

        Args:
            artifact: directory written by `onnxft export`.
            provider: execution provider, see `onnxft doctor`.
            threads: threads inside an operator; None leaves it to the runtime.
            batch_size: rows of a step; None takes the artifact's.
            dimensions: {symbolic dimension: its size}, such as a sequence length; those not named keep the artifact's.
                With several sizes, `{"sequence": (16, 32, 64)}`, each batch has the one that its shapes say. All share
                parameters and state; each opens its graphs when first needed, which takes memory for what the runtime
                prepares of the frozen weights. Activations of all lie in one arena, kept until the process ends.
            seed: of the random inputs (Dropout and the like).
            provider_options: options handed to the provider over the built-in ones.

        Raises:
            ArtifactError: the artifact is missing, damaged or of another schema.
            ProviderError: the provider is absent or cannot run the graph.
            ConfigError: batch_size, threads, seed or a dimension is out of range, or a dimension unknown; or a trained
                BatchNorm would see a single value of a channel.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        if seed >= 2**63:
            raise ConfigError(f"seed is {seed}; it must be below 2**63.")
        self.directory = Path(artifact)
        self.manifest: Manifest = load_artifact(self.directory)
        check_dimensions(self.manifest, dimensions or {})
        self.seed = seed
        self.step_count = 0
        self._micro_step = 0
        self._pending: list[StepResult] = []
        self._shows_averages = False
        for sizes in combined(self.manifest, batch_size or self.manifest.batch_size, dimensions or {}):
            check_statistics(self.manifest, sizes)
        self._engine = self._open(
            provider, threads=threads, batch_size=batch_size, dimensions=dimensions, options=provider_options
        )

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._engine.batch_size

    @property
    def dimensions(self) -> Mapping[str, int]:
        """{symbolic dimension: its size, or the largest of several}, the batch included."""
        return self._engine.sizes[0]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """{symbolic dimension: every size that a batch may have, ascending}, the batch included."""
        return {d: tuple(sorted({sizes[d] for sizes in self._engine.sizes})) for d in self.dimensions}

    @property
    def placement(self) -> Placement:
        """Which provider was asked for and what runs where."""
        return self._engine.placement

    @property
    def supports_weights(self) -> bool:
        """Whether rows can be weighted in training, and so a short batch padded exactly."""
        return self._engine.weights_in_training

    # ----- training -----

    def step(
        self,
        batch: Arrays,
        *,
        lr: Rate,
        weight_decay: Rate | None = None,
        max_norm: float = math.inf,
        max_value: float = math.inf,
    ) -> StepResult:
        """One optimizer step on one batch.

        Args:
            batch: at most `batch_size` rows.
            lr: learning rate, which each group multiplies by its factor; or one for each parameter group.
            weight_decay: as lr; None takes each group's own, else the artifact's.
            max_norm: global norm to which the mean gradient is clipped.
            max_value: absolute value to which its elements are clipped, before the norm.

        Raises:
            DataError: the batch does not fit the model.
            ConfigError: a rate is out of range, or gradients are still accumulated.
        """
        self._require_parameters("step()")
        if self._pending:
            raise ConfigError("gradients are accumulated: call update() before the next step().")
        hyper = check_rates(self.manifest, self.step_count + 1, lr, weight_decay, max_norm, max_value)
        if max_norm != math.inf or max_value != math.inf:
            result = self.accumulate(batch)
            self.update(lr=lr, weight_decay=weight_decay, max_norm=max_norm, max_value=max_value)
            return result
        result = StepResult(self._engine.step(self._complete(batch), hyper))
        self.step_count += 1
        return result

    def accumulate(self, batch: Arrays) -> StepResult:
        """Add the gradients of one micro-batch; `update` divides by the total weight."""
        self._require_parameters("accumulate()")
        result = StepResult(self._engine.accumulate(self._complete(batch)))
        self._pending.append(result)
        self._micro_step += 1
        return result

    def update(
        self,
        *,
        lr: Rate,
        weight_decay: Rate | None = None,
        max_norm: float = math.inf,
        max_value: float = math.inf,
    ) -> None:
        """One optimizer step from what was accumulated; arguments as in `step`."""
        self._require_parameters("update()")
        if not self._pending:
            raise ConfigError("nothing is accumulated: call accumulate() before update().")
        hyper = check_rates(self.manifest, self.step_count + 1, lr, weight_decay, max_norm, max_value)
        weight = sum(r.weight_sum for r in self._pending)
        if weight <= 0:
            raise DataError("all rows since the last update have weight 0, so there is no mean gradient.")
        self._engine.update(hyper, weight)
        self._pending.clear()
        self._micro_step = 0
        self.step_count += 1

    def gradients(self, batch: Arrays) -> dict[str, Array]:
        """{parameter: gradient of the mean loss}, without changing anything."""
        self._require_parameters("gradients()")
        sums, weight = self._engine.gradients(self._complete(batch))
        return {name: np.asarray(value / weight, value.dtype) for name, value in sums.items()}

    # ----- averages -----

    @property
    def supports_averages(self) -> bool:
        """Whether the artifact has the graph for `average`."""
        return "average" in self.manifest.graphs

    def average(self, decay: float) -> None:
        """Move the averages of the trained parameters: a <- a + (1 - decay) (p - a); call it after each update.

        The first call copies the parameters, as torch.optim.swa_utils.AveragedModel does with
        get_ema_multi_avg_fn(decay). Only then is there memory for averages.

        Raises:
            ConfigError: decay is not in [0, 1), or the artifact has no graph for averages.
        """
        self._require_parameters("average()")
        if not 0 <= decay < 1:
            raise ConfigError(f"decay is {decay}; it must be at least 0 and below 1.")
        if not self.supports_averages:
            raise ConfigError(
                f"the artifact '{self.manifest.name}' has no graph for averages of the parameters: export it again "
                "with the native generator."
            )
        self._engine.average(1.0 - decay)  # in float64: 1 - 0.9999 in float32 is wrong in the fourth digit

    @property
    def averages(self) -> dict[str, Array]:
        """{name: value} of the averages of the trained parameters, copies; ConfigError before the first `average`."""
        averages = self._engine.averages()
        if not averages:
            raise ConfigError("the parameters were never averaged: call average() after an update.")
        return averages

    @contextmanager
    def averaged(self) -> Iterator[Self]:
        """Within it `evaluate`, `predict`, `parameters` and `export_model` have the averages for the parameters.

        Running statistics stay the current ones: they are averages already. Whatever trains, saves or sets is refused.

        Raises:
            ConfigError: the parameters were never averaged, or this is within another `averaged`.
        """
        self._require_parameters("averaged()")
        if not self._engine.averages():
            raise ConfigError("the parameters were never averaged: call average() after an update.")
        self._shows_averages = True
        self._engine.show_averages(True)
        try:
            yield self
        finally:
            self._engine.show_averages(False)
            self._shows_averages = False

    # ----- evaluation -----

    def evaluate(self, batch: Arrays) -> Scores:
        """Loss, metrics and outputs in inference behaviour, over any number of rows of one size."""
        return evaluate(self._engine, batch, labels=True)

    def predict(self, inputs: Arrays) -> dict[str, Array]:
        """{output: (rows, ...) array} in inference behaviour, over any number of rows; no labels needed."""
        return evaluate(self._engine, inputs, labels=False).outputs

    # ----- parameters, checkpoints, export -----

    @property
    def parameters(self) -> dict[str, Array]:
        """{name: value} of the trained parameters, copies."""
        return self._engine.parameters()

    @property
    def buffers(self) -> dict[str, Array]:
        """{name: value} of the running statistics of trained BatchNorm layers, copies."""
        return self._engine.buffers()

    def set_parameters(self, values: Arrays) -> None:
        """Replace trained parameters and running statistics; those not named keep their value, as do averages.

        Raises:
            ArtifactError: a name is unknown, or a shape, type or value does not fit; nothing is changed then.
        """
        self._require_parameters("set_parameters()")
        self._set(check_parameters(self.manifest, values))

    def save_checkpoint(self, path: str | Path) -> None:
        """Write parameters, averages, running statistics, state and counters as a directory, whole or not at all."""
        self._require_parameters("save_checkpoint()")
        if self._pending:
            raise ConfigError("gradients are accumulated: call update() before save_checkpoint().")
        checkpoint = Checkpoint(self.step_count, self.seed, self.manifest.name, self.manifest.optimizer.kind)
        write_checkpoint(Path(path), checkpoint, self._values(), self._engine.state(), self._engine.averages())

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same artifact; ArtifactError if it is damaged or of another."""
        self._require_parameters("load_checkpoint()")
        checkpoint, parameters, state, averages = read_checkpoint(Path(path))
        check_fits(
            Path(path),
            checkpoint,
            self.manifest,
            (self._values(), parameters),
            (self._engine.state(), state),
            (self._engine.parameters(), averages),
        )
        self._set(parameters)
        self._engine.set_state(state)
        self._engine.set_averages(averages)
        self.step_count, self.seed = checkpoint.step_count, checkpoint.seed
        self._pending.clear()
        self._micro_step = 0

    def export_model(self, path: str | Path) -> None:
        """Write the inference model with the current weights; loadable by any ONNX Runtime."""
        write_inference_model(self.directory, self.manifest, self._values(), Path(path))

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

    def _open(self, provider: str, **settings: Any) -> Engine:
        if self.manifest.generator == "ort-training":
            from onnxft.runtime.ort_training import OrtTrainingEngine

            return OrtTrainingEngine(self.directory, self.manifest, provider, **settings)
        return NativeEngine(self.directory, self.manifest, provider, **settings)

    def _values(self) -> dict[str, Array]:
        """Parameters and running statistics."""
        return {**self._engine.parameters(), **self._engine.buffers()}

    def _set(self, values: Arrays) -> None:
        """Replace parameters and running statistics, already checked."""
        buffers = {b.name for b in self.manifest.buffers}
        self._engine.set_parameters({n: v for n, v in values.items() if n not in buffers})
        self._engine.set_buffers({n: v for n, v in values.items() if n in buffers})

    def _require_parameters(self, call: str) -> None:
        if self._shows_averages:
            raise ConfigError(f"{call} is refused within averaged(), where averages stand for the parameters.")

    def _complete(self, batch: Arrays) -> dict[str, Array]:
        ports = data_ports(self.manifest)
        sizes = sizes_of(batch, ports, self._engine.sizes)
        checked, rows = check_batch(batch, ports, self.manifest.loss, sizes)
        if rows > self.batch_size:
            raise DataError(f"the batch has {rows} rows; this session takes at most {self.batch_size} (batch_size).")
        require_weight(checked, self.manifest.loss)
        graph = self.manifest.graph("ort_training" if self.manifest.generator == "ort-training" else "train")
        drawn = draw(
            graph.inputs,
            sizes,
            seed=self.seed,
            step=self.step_count,
            micro_step=self._micro_step,
        )
        return {**self._padded(checked, rows), **drawn}

    def _padded(self, batch: Arrays, rows: int) -> dict[str, Array]:
        if self.supports_weights:
            return pad(batch, rows, self.batch_size)
        weights = batch.get(SAMPLE_WEIGHTS)
        if rows != self.batch_size or (weights is not None and (weights != 1).any()):
            raise DataError(
                f"{why_unweighted(self.manifest)}, so a batch must have exactly {self.batch_size} rows (batch_size), "
                f"all of weight 1; this one has {rows} rows{'' if weights is None else ' with weights of their own'}."
            )
        if self._engine.supports_weights:
            return pad(batch, rows, self.batch_size)
        return {name: array for name, array in batch.items() if name != SAMPLE_WEIGHTS}


__all__ = ["Scores", "StepResult", "TrainSession"]
