"""The inputs of an ONNX file: names, element types, and which of their dimensions are open."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxft.arrays import Array
from onnxft.errors import ConfigError, ModelError, near
from onnxft.exporters.naming import rename_inputs
from onnxft.graph.constants import add_constant
from onnxft.graph.shapes import Dim, dims
from onnxft.manifest import BATCH


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs once the graph has them in the internal form."""

    names: dict[str, str]
    """{name in the file: name here}, in order."""
    sizes: dict[str, int]
    """{symbolic dimension besides the batch: its size}"""
    fixed_rows: int | None
    """The batch size that the file has fixed; None where it is open."""
    example: dict[str, Array]
    """{name here: array}, empty where no example was given."""
    notes: tuple[str, ...]

    @property
    def example_rows(self) -> int | None:
        """Rows of the example, or of the file."""
        return len(next(iter(self.example.values()))) if self.example else self.fixed_rows


def open_inputs(
    graph: ir.Graph, input_names: Sequence[str] | None, dimensions: Mapping[str, int], example_inputs: Any
) -> Inputs:
    """Bring the inputs of a graph to the internal form, in place: the first dimension is the batch, all have names.

    Args:
        graph: of the file; its inputs get their new names and shapes.
        input_names: new names, in order; None keeps those of the file.
        dimensions: {symbolic dimension: its size}
        example_inputs: arrays with the batch first: one, a tuple or {input: array}; None: none.

    Raises:
        ModelError: an input has no batch dimension, or a symbolic dimension has no size.
        ConfigError: `dimensions` names an unknown one, or has a size below 1.
    """
    for value in graph.inputs:
        _check_input(value)
    names, notes = _names(graph, input_names)
    example = _example(list(names), example_inputs)
    fixed = _fixed_rows(graph)
    where: dict[str, list[tuple[str, int]]] = {}
    composed: dict[str, str] = {}
    first = {d for v in graph.inputs if isinstance(d := dims(v)[0], str)}
    for value in graph.inputs:
        own = names[str(value.name)]
        other = next((d for d in dims(value)[1:] if d in first and d != dims(value)[0]), None)
        if other is not None:
            raise ModelError(
                f"'{other}' is the first dimension of one input, and so the batch, but a later one of "
                f"'{value.name}'. Export the model with the batch as the first dimension of every input."
            )
        rest = [_dimension(d, f"{own}_{axis}", first, composed) for axis, d in enumerate(dims(value)[1:], 1)]
        for axis, d in enumerate(rest, 1):
            if isinstance(d, str) and d != BATCH:
                where.setdefault(d, []).append((str(value.name), axis))
        value.shape = ir.Shape([BATCH, *rest])
    sizes = _sizes(where, dimensions, example)
    for value in graph.inputs:
        value.name = names[str(value.name)]
    return Inputs(names, sizes, fixed, {names[n]: a for n, a in example.items()}, notes)


def _dimension(d: Dim, own: str, first: Collection[str], composed: dict[str, str]) -> Dim:
    """What a dimension after the first is called: as the file does, or `own` where that says nothing."""
    if isinstance(d, int):
        return d
    if not d:
        return own
    if d in first:
        return BATCH
    # In a measured shape, operators in a name would be read as such.
    if d == BATCH or re.search(r"\*| [+-] ", d):
        return composed.setdefault(d, own)
    return d


def forget_shapes(graph: ir.Graph) -> None:
    """Drop the shapes that the file gives to inner values and outputs: its names and sizes may no longer hold."""
    for node in graph:
        for value in node.outputs:
            value.shape = None


def open_reshapes(graph: ir.Graph, rows: int) -> None:
    """Let constant Reshape targets on the way from the inputs take any number of rows instead of `rows`.

    The first dimension then is what the elements give (-1). Where another one is, and its size is not known
    at `rows` rows, the first is copied (0).
    """
    reached = set(graph.inputs)
    for node in graph:
        if node.op_type in ("Shape", "Size") or not reached.intersection(v for v in node.inputs if v is not None):
            continue
        reached.update(node.outputs)
        target = node.inputs[1] if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        tensor = None if target is None else ir.convenience.get_const_tensor(target)
        if target is None or tensor is None or node.inputs[0] not in reached:
            continue
        shape = [int(d) for d in tensor.numpy().reshape(-1)]
        if not shape or shape[0] in (0, -1) or shape[0] % rows:
            continue
        known = dims(node.outputs[0]) if node.outputs[0].shape is not None else (None,)
        if all(isinstance(d, int) for d in known[1:]) and len(known) == len(shape):
            shape[1:] = [d for d in known[1:] if isinstance(d, int)]
        shape[0] = 0 if -1 in shape else -1
        rows_first = ir.tensor(shape, dtype=ir.DataType.INT64)
        node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}.rows", rows_first))


def _check_input(value: ir.Value) -> None:
    if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise ModelError(
            f"input '{value.name}' is no tensor of numbers ({value.type}): onnxft cannot feed it. "
            "Cut the model behind what reads it."
        )
    if value.shape is None:
        raise ModelError(f"input '{value.name}' has no shape, not even a rank. Export the model with input shapes.")
    if len(value.shape) == 0:
        raise ModelError(
            f"input '{value.name}' is a scalar, and every input must have the batch as its first dimension. Make it a "
            "constant of the model, then export it again."
        )


def _names(graph: ir.Graph, input_names: Sequence[str] | None) -> tuple[dict[str, str], tuple[str, ...]]:
    own = [str(v.name) for v in graph.inputs]
    if input_names is not None and len(input_names) != len(own):
        raise ModelError(f"input_names has {len(input_names)} names for {len(own)} inputs ({', '.join(own)}).")
    renamed, notes = rename_inputs(tuple(input_names or own))
    return dict(zip(own, renamed, strict=True)), notes


def _fixed_rows(graph: ir.Graph) -> int | None:
    first = {str(v.name): dims(v)[0] for v in graph.inputs}
    fixed = {name: d for name, d in first.items() if isinstance(d, int)}
    if not fixed:
        return None
    if len(set(first.values())) > 1:
        raise ModelError(
            f"the inputs have different first dimensions ({', '.join(f'{n}: {d}' for n, d in first.items())}), but "
            "each must be the batch. Export the model with a dynamic first dimension for every input."
        )
    return next(iter(fixed.values()))


def _example(names: Sequence[str], given: Any) -> dict[str, Array]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if set(given) != set(names):
            wrong = next(iter(set(given) ^ set(names)))
            raise ModelError(f"the example inputs must be those of the model, '{wrong}' differs.{near(wrong, names)}")
        arrays = {name: np.asarray(given[name]) for name in names}
    else:
        listed = list(given) if isinstance(given, tuple | list) else [given]
        if len(listed) != len(names):
            raise ModelError(f"{len(listed)} example inputs were given, the model takes {', '.join(names)}.")
        arrays = {name: np.asarray(a) for name, a in zip(names, listed, strict=True)}
    rows = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise ModelError(f"example inputs must have equally many rows, the batch first; here {rows}.")
    return arrays


def _sizes(
    where: Mapping[str, Sequence[tuple[str, int]]], dimensions: Mapping[str, int], example: Mapping[str, Array]
) -> dict[str, int]:
    """The size of every open dimension: as asked for, else as in the example."""
    for name, size in dimensions.items():
        if name not in where:
            known = near(name, where) or " It has none besides the batch (batch_size)."
            raise ConfigError(f"the model has no open dimension '{name}'.{known}")
        if size < 1:
            raise ConfigError(f"the dimension '{name}' is {size}; it must be at least 1.")
    seen = {
        name: example[value].shape[axis]
        for name, places in where.items()
        for value, axis in places[:1]
        if value in example and axis < example[value].ndim
    }
    sizes = {**seen, **dimensions}
    missing = [name for name in where if name not in sizes]
    if missing:
        listed = "; ".join(f"'{n}' of {', '.join(dict.fromkeys(v for v, _ in where[n]))}" for n in missing)
        flags = " ".join(f"--dimension {_quoted(f'{name}=64')}" for name in missing)
        raise ModelError(
            f"the model has dimensions besides the batch that are open: {listed}. Say which sizes sessions use unless "
            f"told otherwise, such as {flags} (in Python: dimensions={dict.fromkeys(missing, 64)})."
        )
    return {name: int(sizes[name]) for name in where}


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w=.]+", text) else f"'{text}'"
