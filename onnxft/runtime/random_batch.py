"""A batch that suits a model, made from the manifest and a seed: for measurements, not for training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxft.arrays import Array
from onnxft.errors import ArtifactError
from onnxft.manifest import BATCH, GraphFile, GraphRole, Loss, Manifest, Port
from onnxft.runtime.sizes import fixed_shape

TRAIN_ROLES: tuple[GraphRole, ...] = ("train", "gradients", "ort_training")


def draws_random_numbers(manifest: Manifest) -> bool:
    """Whether a training step takes masks or other random inputs."""
    return bool(_first_graph(manifest, TRAIN_ROLES).named("random"))


def random_batch(
    manifest: Manifest, batch_size: int, seed: int, dimensions: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """{input or `labels`: array}, the same for the same seed on every machine.

    Floats are standard normal. Integers and booleans are 0 or 1, which every index, mask and token type
    accepts; how many rows an embedding has is not in the manifest. Class labels are uniform.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    sizes = {**manifest.dimensions, **(dimensions or {}), BATCH: batch_size}
    batch = {port.name: _values(rng, port, sizes, high=2) for port in manifest.inputs}
    for labels in manifest.evaluation.named("label"):
        batch[labels.name] = _labels(rng, labels, sizes, manifest.loss)
    return batch


def _labels(rng: np.random.Generator, port: Port, sizes: Mapping[str, int], loss: Loss) -> Array:
    if loss.kind == "bce_with_logits":
        return rng.integers(0, 2, fixed_shape(port, sizes)).astype(port.dtype)
    if loss.kind == "kl_div":
        p = rng.random(fixed_shape(port, sizes))
        return np.asarray(p / p.sum(axis=loss.class_axis, keepdims=True), port.dtype)
    return _values(rng, port, sizes, high=loss.num_classes or 2)


def _values(rng: np.random.Generator, port: Port, sizes: Mapping[str, int], high: int) -> Array:
    shape = fixed_shape(port, sizes)
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, high, shape).astype(dtype)


def _first_graph(manifest: Manifest, roles: tuple[GraphRole, ...]) -> GraphFile:
    for role in roles:
        if role in manifest.graphs:
            return manifest.graphs[role]
    raise ArtifactError(
        f"artifact '{manifest.name}' has none of the graphs {', '.join(roles)}: there is no step to measure. "
        "Export it again."
    )
