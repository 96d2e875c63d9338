"""Names that the training graphs use themselves, and what becomes of a model that has them too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.forward import Tensor
from onnxft.manifest import LABELS, SAMPLE_WEIGHTS

RESERVED = (LABELS, SAMPLE_WEIGHTS, "step")
"""Inputs of the training graphs that a model may have too."""
RESERVED_OUTPUTS = ("loss_sum", "weight_sum")

_BUILT = re.compile(
    r"labels|sample_weights|step|loss_sum|weight_sum|max_norm|max_value|(lr|weight_decay|random|metric|loss|dropout)\..*"
    r"|v_[A-Z]\w*_\d+|constant_\d+|const_(1d_\d+|[-+.\deinf]+_[a-z]+\d+)"
    r"|.*\.(accumulator|gradient|initial|new|shape|rows|masked|exp_avg|exp_avg_sq|momentum_buffer)"
)
"""Names of values that the build half adds to a graph."""


def rename_inputs(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs, those renamed that the training graphs use themselves, and a note on each."""
    renamed = tuple(f"{n}_input" if n in RESERVED else n for n in names)
    notes = (f"the model input '{a}' is called '{b}' here" for a, b in zip(names, renamed, strict=True) if a != b)
    return renamed, tuple(notes)


def check_names(inputs: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """A graph has one value of each name: inputs, and parameters under their own names."""
    for name in inputs:
        if name in tensors or inputs.count(name) > 1:
            raise ModelError(f"the input name '{name}' is also that of a parameter or input: choose other input_names.")
    for name in RESERVED:
        if name in tensors:
            raise ModelError(
                f"the parameter or buffer '{name}' has the name of an input of training graphs: rename it."
            )


def check_output_names(names: Sequence[str], taken: Iterable[str]) -> None:
    """An output is called as nothing else is."""
    used = {*taken, *RESERVED_OUTPUTS}
    for name in names:
        if name in used or names.count(name) > 1:
            raise ModelError(
                f"the output name '{name}' is also that of an input, a parameter or a sum: choose other output_names."
            )


def rename_inside(graph: ir.Graph) -> dict[str, str]:
    """Call values and nodes otherwise where the build half could give their name to one of its own; {old: new} values.

    Inputs and outputs keep theirs. A node without a name, or with that of another, gets one.
    """
    kept = {v.name for v in (*graph.inputs, *graph.outputs)}
    renamed = {}
    for value in (*graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        name = value.name or ""
        if name not in kept and _BUILT.fullmatch(name):
            value.name = renamed[name] = _other(name)
    nodes = set()
    for node in graph:
        if not node.name or node.name in nodes or re.search(r"_node_\d+$", node.name):
            node.name = f"{node.op_type}:{node.outputs[0].name}"
        nodes.add(node.name)
    return renamed


def rename_outputs(names: Sequence[str]) -> list[str]:
    """Names of the outputs, those changed that the build half could give to values of its own."""
    return [_other(name) if _BUILT.fullmatch(name) else name for name in names]


def _other(name: str) -> str:
    return f"model/{name}"
