"""The native generator: training graphs of standard ONNX operators, for every provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxft
from onnxft.files import new_directory, sha256, write_atomically
from onnxft.graph.forward import Forward
from onnxft.graph.io import save_embedded, save_model, save_weights
from onnxft.manifest import (
    FILE_NAME,
    FROZEN_FILE,
    PARAMETERS_FILE,
    ByteRange,
    GraphFile,
    GraphRole,
    Loss,
    Manifest,
    Optimizer,
    Parameter,
)
from onnxft.step.build import build_step
from onnxft.step.select import Selection


def generate(
    forward: Forward,
    selection: Selection,
    loss: Loss,
    optimizer: Optimizer,
    directory: Path,
    *,
    batch_size: int,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> Manifest:
    """Build the graphs and write the artifact; `directory` appears complete or not at all.

    Raises:
        GradientError: an operator between a trained parameter and the loss has no derivative.
        ModelError: the loss does not fit the model.
    """
    step = build_step(forward, selection, loss, optimizer)
    weights = initial_weights(forward)
    with new_directory(directory) as folder:
        save_weights(folder / PARAMETERS_FILE, {name: weights[name] for name in selection.trainable})
        frozen = {name: tensor for name, tensor in weights.items() if name not in selection.groups}
        places = save_weights(folder / FROZEN_FILE, frozen)
        graphs: dict[GraphRole, GraphFile] = {}
        for role, graph in step.items():
            save_model(graph.model, folder / f"{role}.onnx", places)
            graphs[role] = GraphFile(f"{role}.onnx", graph.inputs, graph.outputs)
        ranges = save_embedded(forward.infer, folder / "infer.onnx")
        graphs["infer"] = GraphFile("infer.onnx")
        return write_manifest(
            folder,
            Manifest(
                name=forward.name,
                generator="native",
                batch_size=batch_size,
                graphs=graphs,
                parameters=describe_parameters(forward, selection, ranges),
                loss=loss,
                optimizer=optimizer,
                frozen_parameters=count_frozen(forward, selection),
                classes=tuple(classes),
                preprocessing=dict(preprocessing or {}),
                versions=build_versions(forward),
            ),
        )


def initial_weights(forward: Forward) -> dict[str, ir.TensorProtocol]:
    """{name: value} of the tensors that the graphs read."""
    named = {t.name for t in forward.tensors}
    found = {}
    for graph in (forward.infer.graph, forward.train.graph):
        found.update(
            {n: v.const_value for n, v in graph.initializers.items() if n in named and v.const_value is not None}
        )
    return found


def describe_parameters(
    forward: Forward, selection: Selection, ranges: Mapping[str, ByteRange]
) -> tuple[Parameter, ...]:
    """The manifest's records of the trained parameters, in the order of the selection."""
    tensors = {t.name: t for t in forward.tensors}
    return tuple(
        Parameter(
            name,
            tensors[name].shape,
            tensors[name].dtype,
            group,
            tied_to=tensors[name].tied_to,
            inference=ranges.get(name),
        )
        for name, group in selection.groups.items()
    )


def count_frozen(forward: Forward, selection: Selection) -> int:
    """Number of scalar values in parameters that are not trained."""
    return sum(t.size for t in forward.tensors if t.kind == "parameter" and t.name not in selection.groups)


def build_versions(forward: Forward) -> dict[str, str]:
    """Versions of the packages that made the artifact."""
    packages = ("onnx", "onnx-ir", "onnxscript")
    return {"onnxft": onnxft.__version__, **{p: version(p) for p in packages}, **forward.versions}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Complete the manifest with the hashes of the files in `folder`, check it and write it."""
    hashes = {f.name: sha256(f) for f in sorted(folder.iterdir())}
    complete = Manifest(**{**vars(manifest), "files": hashes})
    complete.check()
    write_atomically(folder / FILE_NAME, complete.to_json())
    return complete
