"""Manifests of models that were never exported: what the data needs to know of one."""

from __future__ import annotations

from onnxft.manifest import GraphFile, Loss, Manifest, Optimizer, Parameter, Port

TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def manifest_of(inputs, label=("int64", ()), *, loss=None, **more):
    """A manifest with inputs {name: (dtype, *dimensions)} and the label (dtype, dimensions), None: without."""
    ports = [Port(name, "input", dtype, ("batch", *shape)) for name, (dtype, *shape) in inputs.items()]
    if label is not None:
        ports.append(Port("labels", "label", label[0], ("batch", *label[1])))
    return Manifest(
        name="model", generator="native", batch_size=4, graphs={"eval": GraphFile("eval.onnx", inputs=tuple(ports))},
        parameters=(Parameter("w", (2,), "float32"),), loss=loss or Loss("cross_entropy", "y", 3),
        optimizer=Optimizer("sgd"), frozen_parameters=0, files={"eval.onnx": ""}, **more,
    )  # fmt: skip


def picture_manifest(*shape, dtype="float32", **more):
    return manifest_of({"image": (dtype, *(shape or (3, 24, 32)))}, **more)


def token_manifest(*, length="sequence", inputs=TOKENS, **more):
    dimensions = {"sequence": 12} if length == "sequence" else {}
    return manifest_of(dict.fromkeys(inputs, ("int64", length)), dimensions=dimensions, **more)
