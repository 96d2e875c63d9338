"""A new run from the weights or the adapter of another."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from onnxft.arrays import Array
from onnxft.errors import ArtifactError
from onnxft.runtime.adapters.adapter import read_adapter
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig


def read_weights(source: str) -> tuple[dict[str, Array], str]:
    """Values and the SHA-256 of their file: `source` is a .safetensors file, or a run, whose best weights are taken.

    Raises:
        ArtifactError: there is no such file, or it is damaged.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "weights" / "best.safetensors"
    try:
        content = path.read_bytes()
        values = load(content)
    except FileNotFoundError:
        raise ArtifactError(
            f"there are no weights '{path}'. Name a .safetensors file, or the directory of a run."
        ) from None
    except (OSError, SafetensorError) as err:
        raise ArtifactError(f"'{path}' cannot be read as .safetensors: {err}.") from err
    return values, hashlib.sha256(content).hexdigest()


def require_fit(session: TrainSession, values: dict[str, Array], source: str) -> str:
    """Say which part of what is trained `values` replaces.

    All values must be of trained parameters or running statistics; what they do not name begins as in the artifact, so
    that a trained head can begin the training of more layers.

    Raises:
        ArtifactError: names the first value that is not trained here, or has another shape or type.
    """
    own = {**session.parameters, **session.buffers}
    for name, value in sorted(values.items()):
        if name not in own:
            problem = f"'{name}' is not trained in '{session.manifest.name}' and would be lost. Export with it trained"
        elif value.shape != own[name].shape or value.dtype != own[name].dtype:
            problem = (
                f"'{name}' is {value.dtype} {list(value.shape)}, and in '{session.manifest.name}' "
                f"{own[name].dtype} {list(own[name].shape)}. Export the same model"
            )
        else:
            continue
        raise ArtifactError(f"the weights '{source}' do not fit: {problem}, or take other weights.")
    if not values:
        raise ArtifactError(f"the weights '{source}' hold no value. Take other weights.")
    rest = "" if len(values) == len(own) else f"; the other {len(own) - len(values)} begin as in the artifact"
    return f"{source}: {len(values)} of {len(own)} values{rest}"


def begin_with(session: TrainSession, config: TrainConfig) -> tuple[str | None, dict[str, str]]:
    """Put the weights or the adapter that the configuration names in the session.

    Returns:
        Which part of what is trained they are, None where it names none; and {`weights` or `adapter`: SHA-256}.

    Raises:
        ArtifactError: there are no such weights, or they do not fit; nothing is changed then.
    """
    if config.weights is not None:
        kind, source, (values, digest) = "weights", config.weights, read_weights(config.weights)
    elif config.adapter is not None:
        kind, source = "adapter", config.adapter
        values, digest = read_adapter(Path(source), session.manifest)
    else:
        return None, {}
    fit = require_fit(session, values, source)
    session.set_parameters(values)
    return fit, {kind: digest}
