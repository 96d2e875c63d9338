"""What comes from outside is checked before the runtime sees it: an artifact's files, new parameter values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError, near
from onnxft.files import sha256
from onnxft.manifest import BATCH, FROZEN_FILE, Manifest, dimension_size
from onnxft.manifest_file import read_manifest
from onnxft.runtime.graph_files import check_graph


def load_artifact(directory: Path) -> Manifest:
    """Read the manifest and check every file against it.

    Raises:
        ArtifactError: a file is missing or does not match its sha256, the directory holds a link, or a graph would
            make the runtime read another file than those that the manifest lists.
    """
    manifest = read_manifest(directory)
    # Graphs name files of weights themselves: a link anywhere in here could lead the runtime out.
    for entry in directory.rglob("*"):
        # What another process wrote to `cache` for a moment may be gone.
        if entry.is_symlink() or (entry.exists() and not entry.is_dir()):
            check_regular(entry)
    for name, expected in manifest.files.items():
        check_regular(directory / name)
        if sha256(directory / name) != expected:
            raise ArtifactError(
                f"'{directory / name}' does not match its sha256: it was changed or only partly copied. "
                "Copy or export the artifact again."
            )
    for role, graph in manifest.every_graph:
        if role not in ("ort_checkpoint", "ort_nominal_checkpoint"):  # of a format of their own, which names no files
            check_graph(directory / graph.file, manifest.files)
    return manifest


def check_regular(path: Path) -> None:
    """ArtifactError unless `path` is a regular file with one name (links may lead out of the directory)."""
    if not path.exists():
        raise ArtifactError(f"'{path}' is missing. Copy or export the artifact again.")
    if path.is_symlink() or not path.is_file() or path.stat().st_nlink != 1:
        raise ArtifactError(f"'{path}' is a link or no regular file; onnxft reads only plain files of an artifact.")


def check_parameters(manifest: Manifest, values: Arrays) -> dict[str, Array]:
    """New values of trained parameters and running statistics, in their element types.

    Raises:
        ArtifactError: a name is unknown, or a shape, type or value does not fit.
    """
    known = {t.name: t for t in manifest.weights}
    variances = {b.name for b in manifest.buffers if b.kind == "variance"}
    typed: dict[str, Array] = {}
    for name, value in values.items():
        if name not in known:
            raise ArtifactError(f"'{name}' is no trained parameter of '{manifest.name}'.{near(name, known)}")
        array = np.asarray(value)
        if array.shape != known[name].shape:
            raise ArtifactError(f"'{name}' has the shape {list(known[name].shape)}, not {list(array.shape)}.")
        with np.errstate(over="ignore"):  # what becomes infinite is found below
            typed[name] = array.astype(known[name].dtype) if array.dtype.kind == "f" else array
        if array.dtype.kind != "f" or not np.isfinite(typed[name]).all():
            raise ArtifactError(f"the new value of '{name}' must be finite {known[name].dtype} numbers.")
        if name in variances and (typed[name] < 0).any():
            raise ArtifactError(f"the new value of '{name}' is a variance and must not be negative.")
    return typed


def weight_bytes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """{what: bytes} that weights and state take while training, each counted once; activations come on top."""
    trained = sum(_bytes(p.shape, p.dtype) for p in manifest.parameters)
    ports = {p.name: p for graph in manifest.graphs.values() for p in graph.inputs if p.role == "state"}
    state = sum(_bytes(p.shape, p.dtype) for p in ports.values())
    if manifest.generator == "ort-training":  # its two moments are in no graph's signature
        state = 2 * trained if manifest.optimizer.kind == "adamw" else 0
    found = {"trained parameters": trained, "optimizer state": state, "gradients": trained}
    frozen = directory / FROZEN_FILE
    if manifest.buffers:
        found["running statistics"] = sum(_bytes(b.shape, b.dtype) for b in manifest.buffers)
    if manifest.generator == "ort-training":
        found["frozen weights"] = manifest.frozen_parameters * np.dtype(np.float32).itemsize
    return {**found, "frozen weights": frozen.stat().st_size} if FROZEN_FILE in manifest.files else found


def feature_bytes(manifest: Manifest) -> int:
    """Bytes that the trunk hands on for one row, at the artifact's sizes."""
    sizes = {BATCH: 1, **manifest.dimensions}
    return sum(_bytes([dimension_size(d, sizes) or 0 for d in p.shape], p.dtype) for p in manifest.features)


def _bytes(shape: Sequence[int | str], dtype: str) -> int:
    return math.prod(int(d) for d in shape) * np.dtype(dtype).itemsize
