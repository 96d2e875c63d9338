"""The manifest of a new artifact, the same from every generator."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnxft
from onnxft.errors import ModelError
from onnxft.files import sha256, write_atomically
from onnxft.frozen_weights import FrozenWeights
from onnxft.graph.forward import Forward
from onnxft.manifest import (
    FILE_NAME,
    Buffer,
    ByteRange,
    GraphFile,
    GraphRole,
    HalfPrecision,
    Loss,
    Manifest,
    Optimizer,
    Parameter,
    Precision,
)
from onnxft.manifest_file import check_manifest, manifest_json
from onnxft.step.select import Selection
from onnxft.step.work import step_work

_PACKAGES = ("onnx", "onnx-ir", "onnxscript")


def describe(
    folder: Path,
    forward: Forward,
    selection: Selection,
    loss: Loss,
    optimizer: Optimizer,
    *,
    generator: Literal["native", "ort-training"],
    batch_size: int,
    graphs: dict[GraphRole, GraphFile],
    ranges: Mapping[str, ByteRange],
    versions: Mapping[str, str] | None = None,
    half: dict[HalfPrecision, dict[GraphRole, GraphFile]] | None = None,
    rest: Forward | None = None,
    whole: str = "",
    runtime_random: tuple[str, ...] = (),
    frozen_weights: FrozenWeights | None = None,
    recompute: int = 0,
    recomputed: dict[Precision, dict[GraphRole, GraphFile]] | None = None,
) -> Manifest:
    """Write what goes along with the model, and the manifest with the hash of every file; the graphs are there.

    Args:
        folder: the artifact under construction.
        forward: the model.
        selection: what is trained.
        loss: fixed at export.
        optimizer: fixed at export.
        generator: its name.
        batch_size: rows that a session takes unless told otherwise.
        graphs: the files of the graphs.
        ranges: {parameter or buffer: its bytes in the inference model}.
        versions: of further packages.
        half: the files of graphs in lower precisions.
        rest: the model from the features on, where it is divided.
        whole: why the model is not divided.
        recompute: blocks in a segment that is computed again; 0: none is.
        recomputed: the files of graphs that do so.
        runtime_random: operators whose numbers the runtime draws.
        frozen_weights: how frozen weights are stored, where in fewer bytes.

    Raises:
        ModelError: a file that goes along has the name of one of the artifact's own.
    """
    for name, content in forward.files.items():
        if (folder / name).exists():
            raise ModelError(f"the source brings a file '{name}', which the artifact has itself: rename it.")
        write_atomically(folder / name, content)
    manifest = Manifest(
        name=forward.name,
        generator=generator,
        batch_size=batch_size,
        graphs=graphs,
        parameters=_parameters(forward, selection, ranges),
        loss=loss,
        optimizer=optimizer,
        frozen_parameters=_count_frozen(forward, selection),
        buffers=_buffers(forward, selection, ranges),
        parameter_groups=selection.parameter_groups,
        dimensions=dict(forward.dimensions),
        classes=forward.classes,
        preprocessing=dict(forward.preprocessing),
        files={f.name: sha256(f) for f in sorted(folder.iterdir())},
        versions={
            "onnxft": onnxft.__version__,
            **{p: version(p) for p in _PACKAGES},
            **forward.versions,
            **(versions or {}),
        },
        half=half or {},
        whole=whole,
        runtime_random=runtime_random,
        frozen_weights=frozen_weights,
        recompute=recompute,
        recomputed=recomputed or {},
        work=step_work(forward, selection, loss, batch_size),
        work_from_features=None if rest is None else step_work(rest, selection, loss, batch_size),
    )
    check_manifest(manifest)
    write_atomically(folder / FILE_NAME, manifest_json(manifest))
    return manifest


def _parameters(forward: Forward, selection: Selection, ranges: Mapping[str, ByteRange]) -> tuple[Parameter, ...]:
    """The manifest's records of the trained parameters, in the order of the selection."""
    tensors = {t.name: t for t in forward.tensors}
    return tuple(
        Parameter(
            name,
            tensors[name].shape,
            tensors[name].dtype,
            group,
            origin="added" if name in forward.added else "model",
            tied_to=tensors[name].tied_to,
            merge=(merge := forward.added.get(name)),
            inference=ranges.get(name if merge is None else merge.target),
        )
        for name, group in selection.groups.items()
    )


def _buffers(forward: Forward, selection: Selection, ranges: Mapping[str, ByteRange]) -> tuple[Buffer, ...]:
    """The manifest's records of the trained running statistics."""
    tensors = {t.name: t for t in forward.tensors}
    kinds: tuple[Literal["mean", "variance"], ...] = ("mean", "variance")
    return tuple(
        Buffer(
            name,
            tensors[name].shape,
            tensors[name].dtype,
            kind,
            layer.name,
            tuple("?" if d is None else d for d in layer.over),
            ranges.get(name),
        )
        for layer in selection.batch_norms
        for name, kind in zip((layer.mean, layer.var), kinds, strict=True)
    )


def _count_frozen(forward: Forward, selection: Selection) -> int:
    """Number of scalar values in parameters that are not trained."""
    return sum(t.size for t in forward.tensors if t.kind == "parameter" and t.name not in selection.groups)
