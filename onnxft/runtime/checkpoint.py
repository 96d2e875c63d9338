"""Checkpoints: a directory that is there whole or not at all; no pickle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load, save

from onnxft.errors import ArtifactError
from onnxft.files import check_replaceable, new_directory, recover, sha256, write_atomically
from onnxft.manifest import Manifest
from onnxft.runtime.engine import Array, Arrays
from onnxft.runtime.loss_scale import LossScale

_RECORD = "checkpoint.json"
_TENSORS = ("parameters.safetensors", "state.safetensors")
_AVERAGES = "averages.safetensors"
"""Only where the session has averages."""


@dataclass(frozen=True)
class Checkpoint:
    """Counters of a training run and what they belong to."""

    step_count: int
    seed: int
    artifact: str
    optimizer: str
    loss_scale: LossScale = field(default_factory=LossScale)
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of the tensor files: the mark of completeness."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, parameters: Arrays, state: Arrays, averages: Arrays) -> None:
    """Replace the directory `path`; a crash leaves the old or the new one. Without `averages` none are recorded.

    Raises:
        ArtifactError: `path` holds something else than a checkpoint.
    """
    check_replaceable(path, _RECORD)
    contents = dict(zip(_TENSORS, (parameters, state), strict=True)) | ({_AVERAGES: averages} if averages else {})
    with new_directory(path) as beside:
        for name, tensors in contents.items():
            write_atomically(beside / name, save(dict(tensors)))
        files = {name: sha256(beside / name) for name in contents}
        complete = replace(checkpoint, files=files)
        write_atomically(beside / _RECORD, msgspec.json.format(msgspec.json.encode(complete)))


def read_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Record, parameters, state and averages (empty where it has none).

    Raises:
        ArtifactError: a file is missing or does not match its hash.
    """
    place = recover(path)
    if not (place / _RECORD).is_file():
        raise ArtifactError(f"'{path}' is not a checkpoint: it has no {_RECORD}.")
    try:
        checkpoint = msgspec.json.decode((place / _RECORD).read_bytes(), type=Checkpoint)
    except msgspec.MsgspecError as err:
        raise ArtifactError(f"'{place / _RECORD}' is damaged: {err}.") from err
    if not (0 <= checkpoint.step_count < 2**63 and 0 <= checkpoint.seed < 2**63):
        raise ArtifactError(f"'{place / _RECORD}' is damaged: step_count or seed is out of range.")
    if not checkpoint.loss_scale.sound or checkpoint.loss_scale.skipped > checkpoint.step_count:
        raise ArtifactError(f"'{place / _RECORD}' is damaged: no run has the loss scale {checkpoint.loss_scale}.")
    tensors = []
    for name in (*_TENSORS, *([_AVERAGES] if _AVERAGES in checkpoint.files else [])):
        if not (place / name).is_file() or sha256(place / name) != checkpoint.files.get(name):
            raise ArtifactError(f"'{place / name}' is missing or damaged: this checkpoint cannot be resumed.")
        try:
            tensors.append(load((place / name).read_bytes()))
        except SafetensorError as err:
            raise ArtifactError(f"'{place / name}' is damaged: {err}.") from err
    parameters, state, *averages = tensors
    return checkpoint, parameters, state, averages[0] if averages else {}


def check_fits(
    path: Path,
    checkpoint: Checkpoint,
    manifest: Manifest,
    parameters: tuple[Arrays, Arrays],
    state: tuple[Arrays, Arrays],
    averages: tuple[Arrays, Arrays],
) -> None:
    """ArtifactError unless a checkpoint continues an artifact.

    `parameters`, `state` and `averages` are (own, found); averages need not be there, then `own` does not matter.
    """
    if averages[1] and "average" not in manifest.graphs:
        raise ArtifactError(
            f"checkpoint '{path}' holds averages of the parameters, for which the artifact '{manifest.name}' has no "
            "'average' graph. Continue with the artifact that it was written for, or export again."
        )
    if checkpoint.optimizer != manifest.optimizer.kind:
        raise ArtifactError(
            f"checkpoint '{path}' is of the optimizer '{checkpoint.optimizer}', the artifact has "
            f"'{manifest.optimizer.kind}'. Continue with the artifact '{checkpoint.artifact}'."
        )
    kinds = [("parameter", parameters), ("state", state), *([("average", averages)] if averages[1] else [])]
    for kind, (own, found) in kinds:
        for name in sorted({*found, *own}):
            if name in own and name in found and _like(own[name], found[name]):
                continue
            problem = "is missing" if name not in found else "is unknown or has another shape or type"
            raise ArtifactError(
                f"checkpoint '{path}' does not fit the artifact '{manifest.name}': {kind} '{name}' {problem}. "
                f"It was written for '{checkpoint.artifact}'."
            )


def _like(own: Array, found: Array) -> bool:
    return own.shape == found.shape and own.dtype == found.dtype
