"""Cutting the frozen part off a model: it becomes the trunk, whose results are inputs of the rest.

The trunk gives the same numbers for the same rows each time, so that they can be kept; its weights are constants, which
a runtime fuses as it does for inference.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.errors import ModelError
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward
from onnxft.graph.sameness import fingerprints
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH
from onnxft.step.frontier import find_frontier
from onnxft.step.frozen.widen import STORED
from onnxft.step.randomness import random_operators
from onnxft.step.select import Selection
from onnxft.step.step_graph import StepGraph, port

FEATURE = "feature."
"""What the names of features begin with."""


@dataclass(frozen=True)
class Cut:
    """A model in two parts."""

    trunk: StepGraph
    """From inputs to features; an input that the rest reads is one too."""
    rest: Forward
    """The same model from features on."""


def cut(forward: Forward, selection: Selection) -> Cut | str:
    """Divide a model where it hands on the fewest bytes a row; or why it stays whole: "" where nothing can be divided.

    The training graph and the inference graph are divided at the same place: where they compute the same.
    """
    train, infer = forward.train.clone(), forward.infer.clone()
    drawn = random_operators(train.graph)
    try:
        frontier = find_frontier(train.graph.outputs, _moving(train.graph, forward, selection, drawn), _sizes(forward))
    except ModelError as err:
        return str(err)
    if not frontier:
        without = find_frontier(train.graph.outputs, _moving(train.graph, forward, selection, []), _sizes(forward))
        return f"the frozen part draws random numbers first ('{drawn[0].name}'): see --no-dropout." if without else ""
    named = {t.name for t in forward.tensors}
    here, there = fingerprints(train.graph, named), fingerprints(infer.graph, named)
    same = {digest: value for value, digest in there.items()}
    if missing := [v for v in frontier if here[v] not in same]:
        return f"training and inference compute '{missing[0].name}' differently."
    names, twins = [f"{FEATURE}{v.name}" for v in frontier], [same[here[v]] for v in frontier]
    trunk = _trunk(infer, twins, names)
    for model, values in ((train, frontier), (infer, twins)):
        _feed(model, values, names)
        if left := [v for v in model.graph.inputs if v.uses() and v.name not in names]:
            return f"what is trained reads the shape of '{left[0].name}', which is only known at run time."
    return Cut(trunk, replace(forward, train=train, infer=infer, features=tuple(names)))


def _sizes(forward: Forward) -> dict[str, int]:
    return {BATCH: 1, **forward.dimensions}


def _moving(graph: ir.Graph, forward: Forward, selection: Selection, drawn: Sequence[ir.Node]) -> list[ir.Value]:
    """What is not the same for the same row each time: what is trained, and random numbers.

    Weights that an adapter is added to are among it: as a feature their product would be larger than its factor.
    """
    adapted = [merge.target for merge in forward.added.values()]
    trained = (*selection.trainable, *selection.buffers, *adapted, *(f"{name}{STORED}" for name in adapted))
    return [
        *(graph.initializers[name] for name in trained if name in graph.initializers),
        *(value for node in drawn for value in node.outputs),
    ]


def _trunk(model: ir.Model, values: Sequence[ir.Value], names: Sequence[str]) -> StepGraph:
    """What computes `values`, as a graph whose outputs have the `names`."""
    outputs = list(model.graph.outputs)
    model.graph.outputs[:] = values
    trunk: ir.Model = model.clone()
    model.graph.outputs[:] = outputs
    op = builder(trunk.graph)
    for index, (value, name) in enumerate(zip(list(trunk.graph.outputs), names, strict=True)):
        if value.is_graph_input():
            trunk.graph.outputs[index] = value = op.Identity(value)
        value.name = name
    trunk.graph.name = "trunk"
    common.RemoveUnusedNodesPass()(trunk)
    common.ClearMetadataAndDocStringPass()(trunk)
    for value in [v for v in trunk.graph.inputs if not v.uses()]:
        trunk.graph.inputs.remove(value)
    inputs = tuple(port(v, "input") for v in trunk.graph.inputs)
    return StepGraph(trunk, inputs, tuple(port(v, "feature") for v in trunk.graph.outputs))


def _feed(model: ir.Model, values: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Make `values` inputs under the `names`, and drop what computed them."""
    graph, op = model.graph, builder(model.graph)
    for value, name in zip(values, names, strict=True):
        assert value.dtype is not None
        fed = add_input(op, name, value.dtype, dims(value))
        value.replace_all_uses_with(fed, replace_graph_outputs=True)
    common.RemoveUnusedNodesPass()(model)
    kept = {v for v in graph.inputs if v.name in names}
    for node in [n for n in graph if n.op_type == "Shape" and n.inputs[0] not in kept]:
        _restate(op, node, kept)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def _restate(op: Op, node: ir.Node, kept: Collection[ir.Value]) -> None:
    """Read the dimensions that a Shape reads from features instead, where they are known or named there."""
    value = node.inputs[0]
    assert value is not None
    places = {d: (v, axis) for v in kept for axis, d in enumerate(dims(v)) if isinstance(d, str)}
    end = node.attributes.get_int("end", len(dims(value)))
    wanted = dims(value)[node.attributes.get_int("start", 0) : end]
    if not all(isinstance(d, int) or d in places for d in wanted):
        return
    parts = []
    for d in wanted:
        if isinstance(d, int):
            parts.append(op.Constant(value=ir.tensor([d], dtype=ir.DataType.INT64)))
        elif d is not None:
            source, axis = places[d]
            parts.append(op.Shape(source, start=axis, end=axis + 1))
    if parts:
        node.outputs[0].replace_all_uses_with(op.Concat(*parts, axis=0), replace_graph_outputs=True)
