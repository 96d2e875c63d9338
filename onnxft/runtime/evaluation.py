"""Evaluation over any number of rows, batch by batch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import SAMPLE_WEIGHTS, Manifest, Port
from onnxft.runtime.batches import check_batch, pad, parts, why_unweighted, without_labels
from onnxft.runtime.engine import Engine
from onnxft.runtime.results import Scores, mean
from onnxft.runtime.sizes import sizes_of


def data_ports(manifest: Manifest, batch: Collection[str] = ()) -> tuple[Port, ...]:
    """What a batch must hold: inputs and labels; where it has a feature, all features in the place of the inputs."""
    has_features = any(p.name in batch for p in manifest.features)
    return (*(manifest.features if has_features else manifest.inputs), *manifest.evaluation.named("label"))


def evaluate(engine: Engine, batch: Arrays, *, labels: bool) -> Scores:
    """Weighted means over all rows, and the outputs of one row for each; without `labels` only these mean something.

    What only a loss of the model's own reads may be missing then.

    Raises:
        DataError: the batch does not fit the model.
    """
    manifest, size = engine.manifest, engine.batch_size
    ports = data_ports(manifest, batch)
    left_out: tuple[Port, ...] = ()
    unread: list[str] = []
    if not labels:
        unread = [name for name in manifest.loss.inputs if name not in batch]
        left_out = tuple(p for p in ports if p.role == "label" or p.name in unread)
        ports = tuple(p for p in ports if p not in left_out)
    sizes = sizes_of(batch, ports, engine.sizes)
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    outputs: dict[str, list[Array]] = {}
    for start, part in parts(batch, size):
        complete, rows = check_batch(part, ports, manifest.loss, sizes, labels=labels, first_row=start)
        if not labels:
            complete |= without_labels(left_out, rows, sizes, weights=engine.supports_weights)
        elif manifest.loss.scalar:
            _require_equal(complete, manifest)
        # A loss over the whole batch would count padding; the engine takes fewer rows as they are.
        short = labels and manifest.loss.scalar
        result = engine.evaluate(pad(complete, rows, rows if short else size) if engine.supports_weights else complete)
        loss, weight = loss + result.loss_sum, weight + result.weight_sum
        for name, value in result.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        for name, array in result.outputs.items():
            if array.ndim == 0 or (unread and name == manifest.loss.output):
                continue  # a number for the batch; a loss of targets that were not given
            outputs.setdefault(name, []).append(array[:rows])
    return Scores(
        mean(loss, weight),
        {name: mean(value, weight) for name, value in metrics.items()},
        {name: np.concatenate(arrays) for name, arrays in outputs.items()},
        weight,
    )


def compute_features(engine: Engine, inputs: Arrays) -> dict[str, Array]:
    """What the trunk makes of any number of rows.

    Raises:
        ConfigError: the artifact has no trunk.
        DataError: the inputs do not fit the model.
    """
    manifest = engine.manifest
    if not manifest.features:
        why = f": {manifest.whole}" if manifest.whole else "."
        raise ConfigError(f"the artifact '{manifest.name}' has no trunk that would compute features{why}")
    sizes, found = sizes_of(inputs, manifest.inputs, engine.sizes), []
    for start, part in parts(inputs, engine.batch_size):
        complete, rows = check_batch(part, manifest.inputs, manifest.loss, sizes, labels=False, first_row=start)
        whole = engine.features(pad(complete, rows, engine.batch_size))
        found.append({name: array[:rows] for name, array in whole.items()})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _require_equal(batch: Arrays, manifest: Manifest) -> None:
    weights = batch.get(SAMPLE_WEIGHTS)
    if weights is not None and (weights != 1).any():
        raise DataError(
            f"'{SAMPLE_WEIGHTS}' are not all 1, but {why_unweighted(manifest)}. Leave them out, or let the model give "
            "one loss for each row."
        )
