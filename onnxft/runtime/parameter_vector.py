"""Trained parameters as one vector, as clients of federated learning exchange them."""

from __future__ import annotations

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError, ConfigError
from onnxft.manifest import Manifest


def pack(manifest: Manifest, values: Arrays) -> Array:
    """All values float32 (n,), parameter by parameter in the order of the manifest, each in row-major order.

    Raises:
        ConfigError: a parameter is not float32, so the vector would not hold it exactly.
    """
    _require_float32(manifest)
    return np.concatenate([values[p.name].ravel() for p in manifest.parameters])


def unpack(manifest: Manifest, vector: Array) -> dict[str, Array]:
    """{parameter: value} of what `pack` made, views of `vector`.

    Raises:
        ConfigError: a parameter is not float32.
        ArtifactError: the vector has another shape or type.
    """
    _require_float32(manifest)
    check_vector(vector, manifest.num_trainable)
    ends = np.cumsum([p.size for p in manifest.parameters])[:-1]
    parts = np.split(vector, ends)
    return {p.name: part.reshape(p.shape) for p, part in zip(manifest.parameters, parts, strict=True)}


def check_vector(vector: Array, size: int) -> None:
    """ArtifactError unless the vector has `size` finite float32 values."""
    if vector.shape != (size,) or vector.dtype != np.float32:
        raise ArtifactError(
            f"the parameter vector has the shape {list(vector.shape)} and type {vector.dtype}; here it is float32 "
            f"[{size}]. Exchange vectors between artifacts of one model and one selection."
        )
    if not np.isfinite(vector).all():
        raise ArtifactError("the parameter vector must have finite values. Leave out the client that sent it.")


def _require_float32(manifest: Manifest) -> None:
    for parameter in manifest.parameters:
        if parameter.dtype != "float32":
            raise ConfigError(
                f"'{parameter.name}' is {parameter.dtype}, and the parameter vector is float32. Use `parameters` and "
                "set_parameters()."
            )
