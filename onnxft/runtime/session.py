"""`TrainSession`: the face of a training run, the same for every engine and provider."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import Manifest
from onnxft.runtime.artifact import check_parameters, load_artifact
from onnxft.runtime.auto import choose, median_seconds
from onnxft.runtime.checkpoint import read_checkpoint, write_checkpoint
from onnxft.runtime.completion import complete
from onnxft.runtime.evaluation import compute_features, evaluate
from onnxft.runtime.execution import Execution, Precision
from onnxft.runtime.opening import check_request, open_engine
from onnxft.runtime.processes import ALONE, Processes
from onnxft.runtime.providers import AUTO
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.rates import Rate, check_rates
from onnxft.runtime.results import Scores, StepResult
from onnxft.runtime.session_export import Exporting
from onnxft.runtime.session_facts import SessionFacts
from onnxft.runtime.sizes import Sizes
from onnxft.runtime.snapshot import Snapshot
from onnxft.runtime.take_up import Trained


class TrainSession(SessionFacts, Exporting):
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
        precision: Precision = "float32",
        device: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        strict: bool = False,
        recompute: bool | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Check the artifact and open its training graph.

        Args:
            artifact: directory written by `onnxft export`.
            provider: execution provider, see `onnxft doctor`; `auto` tries those that are here and takes the fastest.
            threads: threads inside an operator; None leaves it to the runtime.
            batch_size: rows of a step; None takes the artifact's.
            dimensions: {symbolic dimension: its size}, such as a sequence length; those not named keep the artifact's.
                With several sizes, `{"sequence": (16, 32, 64)}`, each batch has the one that its shapes say. All share
                parameters and state; each opens its graphs when first needed, which takes memory for what the runtime
                prepares of the frozen weights. Activations of all lie in one arena, kept until the process ends.
            seed: of the random inputs (Dropout and the like).
            precision: of products; parameters, accumulators, state, updates and the exported model are float32 always.
            device: index among the provider's devices; None: its first.
            provider_options: options handed to the provider over the built-in ones.
            strict: whether nodes that run on another provider than the one asked for are an error.
            recompute: whether activations are computed again for the backward pass, or all are kept; None: again where
                the artifact was exported so. Parameters and state are the same: a checkpoint of one goes on with the
                other, on cpu with the same numbers where one block is computed again at a time.
            processes: those that train together. Each gives `step`, `accumulate` and `gradients` its share of a large
                batch, and all call them and `update` alike; results are those of the large batch.

        Raises:
            ArtifactError: the artifact is missing, damaged or of another schema.
            ProviderError: the provider is absent, or cannot run the graph as asked.
            ConfigError: batch_size, threads, seed or a dimension is out of range, or a dimension unknown; a trained
                BatchNorm would see a single value of a channel; a batch cannot be divided among `processes`; or
                activations cannot be computed again.
        """
        asked = Execution(provider, precision, device, threads, provider_options or {}, strict)
        self.directory = Path(artifact)
        self.manifest: Manifest = load_artifact(self.directory)
        self.recomputes = self.manifest.recomputes(recompute)
        asked = replace(asked, recompute=self.recomputes)
        check_request(self.manifest, seed, processes, batch_size, dimensions or {})
        self.seed, self.processes = seed, processes
        self.step_count = self._micro_step = 0
        self._pending: list[StepResult] = []
        self._shows_averages = False
        self._decays: dict[str, float] = {}
        self._reason = ""
        if provider == AUTO:

            def step_seconds(name: str) -> float:
                with TrainSession(
                    artifact, name, threads=threads, batch_size=batch_size, dimensions=dimensions, precision=precision,
                    device=device, provider_options=provider_options, strict=strict, recompute=recompute,
                ) as session:  # fmt: skip
                    drawn = random_batch(session.manifest, session.batch_size, 0, session.dimensions)
                    return median_seconds(lambda: session.step(drawn, lr=1e-6).loss)

            choice = processes.from_first(lambda: choose(asked, step_seconds))
            asked, self._reason = choice.asked, choice.reason
        self._engine = open_engine(
            self.directory, self.manifest, asked, processes=processes, batch_size=batch_size, dimensions=dimensions
        )

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
        if hyper.clips:
            result = self.accumulate(batch)
            self.update(lr=lr, weight_decay=weight_decay, max_norm=max_norm, max_value=max_value)
            return result
        result = StepResult(self._engine.step(self._complete(batch), hyper))
        self.step_count, self._decays = self.step_count + 1, hyper.weight_decay
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
        self.step_count, self._decays = self.step_count + 1, hyper.weight_decay

    def gradients(self, batch: Arrays) -> dict[str, Array]:
        """{parameter: gradient of the mean loss}, without changing anything."""
        self._require_parameters("gradients()")
        sums, weight = self._engine.gradients(self._complete(batch))
        return {name: np.asarray(value / weight, value.dtype) for name, value in sums.items()}

    # ----- averages -----

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
        self._require_averages()
        return self._engine.averages()

    @contextmanager
    def averaged(self) -> Iterator[Self]:
        """Within it `evaluate`, `predict`, `parameters` and `export_model` have the averages for the parameters.

        Running statistics stay the current ones: they are averages already. Whatever trains, saves or sets is refused.
        ConfigError where the parameters were never averaged, or this is within another `averaged`.
        """
        self._require_parameters("averaged()")
        self._require_averages()
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

    def features(self, inputs: Arrays) -> dict[str, Array]:
        """{feature: (rows, ...) array}: what the frozen part hands on, over any number of rows; always the same.

        Batches may have them in the place of the inputs. ConfigError where the artifact has no trunk.
        """
        return compute_features(self._engine, inputs)

    # ----- parameters, checkpoints, export -----

    @property
    def parameters(self) -> dict[str, Array]:
        """{name: value} of the trained parameters, copies."""
        return self._engine.parameters()

    @property
    def buffers(self) -> dict[str, Array]:
        """{name: value} of the running statistics of trained BatchNorm layers, copies."""
        return self._engine.buffers()

    def values(self) -> dict[str, Array]:
        """{name: value} of parameters and running statistics, to be read before the next step.

        They are no copies where the provider keeps them in this process's memory.
        """
        return {**self._engine.parameters(copy=False), **self._engine.buffers()}

    def set_parameters(self, values: Arrays) -> None:
        """Replace trained parameters and running statistics; those not named keep their value, as do averages.

        Raises:
            ArtifactError: a name is unknown, or a shape, type or value does not fit; nothing is changed then.
        """
        self._require_parameters("set_parameters()")
        self._set(check_parameters(self.manifest, values))

    def parameter_vector(self, *, trainable_only: bool = True) -> Array:
        """All parameters one after the other, float32 (n,), for federated learning; else the frozen ones too.

        Vectors of one model and selection fit each other, whatever the generator and the language of the client.
        ConfigError where they are not all float32, or frozen ones are asked for of another generator than ort-training.
        """
        self._require_parameters("parameter_vector()")
        return self._engine.parameter_vector(trainable_only=trainable_only)

    def set_parameter_vector(self, vector: Array, *, trainable_only: bool = True) -> None:
        """Replace what `parameter_vector` gives; ArtifactError where shape, type or a value does not fit."""
        self._require_parameters("set_parameter_vector()")
        self._engine.set_parameter_vector(np.asarray(vector), trainable_only=trainable_only)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write parameters, averages, running statistics, state and counters as a directory, whole or not at all."""
        self._require_parameters("save_checkpoint()")
        if self._pending:
            raise ConfigError("gradients are accumulated: call update() before save_checkpoint().")
        write_checkpoint(Path(path), self._snapshot(), self.manifest, self._trained)

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same artifact, or of the same model as the other generator trains it.

        Raises:
            ArtifactError: it is damaged or of another artifact; or of the other generator, and not the same model,
                loss, optimizer and decay, or with something that this one has no counterpart for. Nothing is changed.
        """
        self._require_parameters("load_checkpoint()")
        self._take(read_checkpoint(Path(path), self._snapshot(), self.manifest, self._trained))

    def take_from_first(self) -> None:
        """Go on in all processes from the parameters, averages, state and counters of the first."""
        self._take(self.processes.from_first(self._snapshot))

    def close(self) -> None:
        """Release sessions and buffers."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ----- helpers -----

    def _set(self, values: Arrays) -> None:
        """Replace parameters and running statistics, already checked."""
        buffers = {b.name for b in self.manifest.buffers}
        self._engine.set_parameters({n: v for n, v in values.items() if n not in buffers})
        self._engine.set_buffers({n: v for n, v in values.items() if n in buffers})

    @cached_property
    def _trained(self) -> Trained:
        return Trained.of(self.directory, self.manifest)

    def _snapshot(self) -> Snapshot:
        engine = self._engine
        return Snapshot(
            self.step_count, self.seed, self.loss_scale, self.values(), engine.state(copy=False),
            engine.averages(copy=False), self._decays,
        )  # fmt: skip

    def _take(self, snapshot: Snapshot) -> None:
        """Go on from there."""
        self._set(snapshot.values)
        self._engine.set_state(snapshot.state)
        self._engine.set_averages(snapshot.averages)
        self._engine.loss_scale = snapshot.loss_scale
        self.step_count, self.seed, self._decays = snapshot.step_count, snapshot.seed, snapshot.decays
        self._pending.clear()
        self._micro_step = 0

    def _require_parameters(self, call: str) -> None:
        if self._shows_averages:
            raise ConfigError(f"{call} is refused within averaged(), where averages stand for the parameters.")

    def _require_averages(self) -> None:
        if not self._engine.has_averages:
            raise ConfigError("the parameters were never averaged: call average() after an update.")

    def _complete(self, batch: Arrays) -> dict[str, Array]:
        return complete(
            batch, self._engine, seed=self.seed, step=self.step_count, micro_step=self._micro_step, share=self.share
        )


__all__ = ["Scores", "StepResult", "TrainSession"]
