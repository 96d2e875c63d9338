"""Checkpoints: a directory that is there whole or not at all; no pickle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load

from onnxft.arrays import Array
from onnxft.errors import ArtifactError
from onnxft.files import check_replaceable, new_directory, recover, sha256, write_atomically
from onnxft.manifest import Manifest
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.snapshot import Snapshot
from onnxft.runtime.take_up import Trained, taken_up
from onnxft.tensor_file import write_tensors

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
    trained: Trained | None = None
    """None: written before it was recorded, so that only the same generator can go on."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of the tensor files: the mark of completeness."""


def write_checkpoint(path: Path, snapshot: Snapshot, manifest: Manifest, trained: Trained) -> None:
    """Replace the directory `path`; a crash leaves the old or the new one.

    Raises:
        ArtifactError: `path` holds something else than a checkpoint.
    """
    check_replaceable(path, _RECORD)
    contents = dict(zip(_TENSORS, (snapshot.values, snapshot.state), strict=True))
    if snapshot.averages:
        contents[_AVERAGES] = snapshot.averages
    trained = replace(trained, decays=snapshot.decays or trained.decays)
    with new_directory(path) as beside:
        for name, tensors in contents.items():
            write_tensors(beside / name, tensors)
        record = Checkpoint(
            snapshot.step_count, snapshot.seed, manifest.name, manifest.optimizer.kind, snapshot.loss_scale, trained,
            files={name: sha256(beside / name) for name in contents},
        )  # fmt: skip
        write_atomically(beside / _RECORD, msgspec.json.format(msgspec.json.encode(record)))


def read_checkpoint(path: Path, own: Snapshot, manifest: Manifest, trained: Trained) -> Snapshot:
    """What a session goes on from; `own` is how it stands now, `trained` what its artifact trains.

    A checkpoint of the other generator is taken up (`runtime/take_up.py`).

    Raises:
        ArtifactError: it is damaged, or does not continue the artifact; or the runtime draws random numbers itself,
            whose generator nothing restores.
    """
    if manifest.runtime_random:
        raise ArtifactError(
            f"checkpoint '{path}' cannot be resumed: in the artifact '{manifest.name}' onnxruntime-training draws for "
            f"{', '.join(manifest.runtime_random)} itself, and its generator cannot be put back, so the masks would be "
            "others. Export without --standalone, or begin a new run with the weights alone (--weights)."
        )
    place = recover(path)
    if not (place / _RECORD).is_file():
        raise ArtifactError(f"'{path}' is not a checkpoint: it has no {_RECORD}.")
    record = _read_record(place / _RECORD)
    values, state, *averages = (
        _read_tensors(place / name, record)
        for name in (*_TENSORS, _AVERAGES)
        if name != _AVERAGES or name in record.files
    )
    decays = {} if record.trained is None else record.trained.decays
    found = Snapshot(
        record.step_count, record.seed, record.loss_scale, values, state, averages[0] if averages else {}, decays
    )
    if record.trained is not None and record.trained.generator != trained.generator:
        found = replace(found, state=taken_up(path, record.trained, trained, own, found, manifest))
    _check_fits(path, record, manifest, own, found)
    return found


def _read_record(path: Path) -> Checkpoint:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except msgspec.MsgspecError as err:
        raise ArtifactError(f"'{path}' is damaged: {err}.") from err
    if not (0 <= record.step_count < 2**63 and 0 <= record.seed < 2**63):
        raise ArtifactError(f"'{path}' is damaged: step_count or seed is out of range.")
    if not record.loss_scale.sound or record.loss_scale.skipped > record.step_count:
        raise ArtifactError(f"'{path}' is damaged: no run has the loss scale {record.loss_scale}.")
    return record


def _read_tensors(path: Path, record: Checkpoint) -> dict[str, Array]:
    if not path.is_file() or sha256(path) != record.files.get(path.name):
        raise ArtifactError(f"'{path}' is missing or damaged: this checkpoint cannot be resumed.")
    try:
        return dict(load(path.read_bytes()))
    except SafetensorError as err:
        raise ArtifactError(f"'{path}' is damaged: {err}.") from err


def _check_fits(path: Path, record: Checkpoint, manifest: Manifest, own: Snapshot, found: Snapshot) -> None:
    """ArtifactError unless what was found continues the artifact; averages need not be there."""
    if found.averages and "average" not in manifest.graphs:
        raise ArtifactError(
            f"checkpoint '{path}' holds averages of the parameters, for which the artifact '{manifest.name}' has no "
            "'average' graph. Continue with the artifact that it was written for, or export again."
        )
    if record.optimizer != manifest.optimizer.kind:
        raise ArtifactError(
            f"checkpoint '{path}' is of the optimizer '{record.optimizer}', the artifact has "
            f"'{manifest.optimizer.kind}'. Continue with the artifact '{record.artifact}'."
        )
    parameters = {p.name: own.values[p.name] for p in manifest.parameters}
    kinds = [("parameter", own.values, found.values), ("state", own.state, found.state)]
    for kind, mine, read in [*kinds, *([("average", parameters, found.averages)] if found.averages else [])]:
        for name in sorted({*read, *mine}):
            if name in mine and name in read and _like(mine[name], read[name]):
                continue
            problem = "is missing" if name not in read else "is unknown or has another shape or type"
            raise ArtifactError(
                f"checkpoint '{path}' does not fit the artifact '{manifest.name}': {kind} '{name}' {problem}. "
                f"It was written for '{record.artifact}'."
            )


def _like(own: Array, found: Array) -> bool:
    return own.shape == found.shape and own.dtype == found.dtype
