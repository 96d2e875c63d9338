"""A graph of a training step under construction, with the role of each of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.errors import ModelError, near
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims
from onnxft.graph.walk import after
from onnxft.manifest import BATCH, LABELS, SAMPLE_WEIGHTS, Loss, Port, Role
from onnxft.step.in_place import may_overwrite
from onnxft.step.losses import LossTerms, label_type, loss_builder
from onnxft.step.randomness import randomness_to_inputs
from onnxft.step.row_blocks import RowBlock, row_blocks
from onnxft.step.scalars import raise_scalars
from onnxft.step.select import Selection
from onnxft.step.shared_weights import separate_shared_weights


@dataclass(frozen=True)
class StepGraph:
    """One graph and the role of each of its inputs and outputs."""

    model: ir.Model
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class StepGraphBuilder:
    """A graph under construction with the ports it has so far."""

    def __init__(self, model: ir.Model, forward: Forward) -> None:
        """Take over `model`, a copy of one of the graphs of `forward`; its outputs become outputs when added."""
        self.model = model
        self.forward = forward
        self.op: Op = builder(model.graph)
        self.tensors = {t.name: t for t in forward.tensors}
        self.inputs = [port(v, "feature" if v.name in forward.features else "input") for v in model.graph.inputs]
        self.outputs: list[Port] = []
        self.values: dict[str, ir.Value] = {}
        self.model_outputs = dict(zip(forward.outputs, model.graph.outputs, strict=False))
        model.graph.outputs.clear()

    def add_random_inputs(self) -> None:
        """Random operators become `random` inputs; see `randomness_to_inputs`."""
        self.model.graph.outputs.extend(self.model_outputs.values())
        self.inputs += randomness_to_inputs(self.op)
        # A random operator may have been the output itself.
        self.model_outputs = dict(zip(self.model_outputs, self.model.graph.outputs, strict=True))
        self.model.graph.outputs.clear()

    def add_parameters(self, selection: Selection) -> None:
        """Trained parameters become inputs under their names."""
        for name in selection.trainable:
            self.inputs.append(port(self._to_input(name), "parameter", parameter=name))
        separate_shared_weights(self.op)

    def add_buffers(self, selection: Selection) -> None:
        """Trained running statistics become inputs under their names."""
        for name in selection.buffers:
            self.inputs.append(port(self._to_input(name), "buffer", buffer=name))

    def _to_input(self, name: str) -> ir.Value:
        tensor = self.tensors[name]
        old = self.model.graph.initializers.pop(name, None)
        value = self.values[name] = add_input(self.op, name, element_type(tensor.dtype), tensor.shape)
        if old is not None:
            old.name = f"{name}.initial"
            old.replace_all_uses_with(value)
        return value

    def add_loss(self, loss: Loss) -> LossTerms:
        """Labels and row weights become inputs, and the loss is appended; ModelError where it does not fit."""
        if loss.output not in self.model_outputs:
            raise ModelError(f"the model has no output '{loss.output}'.{near(loss.output, self.model_outputs)}")
        output = self.model_outputs[loss.output]
        labels = None
        if typed := label_type(loss, output):
            labels = add_input(self.op, LABELS, *typed)
            self.inputs.append(port(labels, "label"))
        weights = add_input(self.op, SAMPLE_WEIGHTS, ir.DataType.FLOAT, [BATCH])
        self.inputs.append(port(weights, "sample_weight"))
        return loss_builder(loss.kind)(self.op, loss, output, labels, weights)

    def add_scalar(self, name: str, role: Role, group: str | None = None) -> ir.Value:
        """A scalar input in the element type of the parameters."""
        dtype = next(iter(self.values.values())).dtype or ir.DataType.FLOAT
        value = add_input(self.op, name, dtype, [])
        self.inputs.append(port(value, role, group=group))
        return value

    def blocks(self, parameter: str) -> list[RowBlock]:
        """The rows of a parameter as its update takes them."""
        tensor = self.tensors[parameter]
        return row_blocks(parameter, tensor.shape, np.dtype(tensor.dtype).itemsize)

    def block(self, block: RowBlock) -> ir.Value:
        """A trained parameter, or an input for some of its rows."""
        if block.rows is None:
            return self.values[block.parameter]
        return self.add_state_input(block, "parameter", None, block.parameter)

    def add_state_input(self, block: RowBlock, role: Role, slot: str | None, name: str) -> ir.Value:
        """An input in the shape of a parameter, or of some of its rows."""
        tensor = self.tensors[block.parameter]
        value = add_input(self.op, block.named(name), element_type(tensor.dtype), block.shape(tensor.shape))
        self.inputs.append(port(value, role, block.parameter, slot, rows=block.rows))
        return value

    def add_state_output(self, value: ir.Value, block: RowBlock, role: Role, slot: str | None, name: str) -> None:
        """An output in the shape of a parameter, or of some of its rows."""
        value = self._output(value, block.named(name), block.shape(self.tensors[block.parameter].shape))
        self.outputs.append(port(value, role, block.parameter, slot, rows=block.rows))

    def add_output(self, value: ir.Value, name: str, role: Role, slot: str | None = None) -> None:
        """An output that has nothing to do with a parameter."""
        self.outputs.append(port(self._output(value, name), role, slot=slot))

    def _output(self, value: ir.Value, name: str, shape: Sequence[int] | None = None) -> ir.Value:
        """The value as an output of that name; what the graph only hands on gets a node of its own."""
        if value.is_graph_input() or value.is_graph_output():
            value = self.op.Identity(value)
        value.name = name
        self.model.graph.outputs.append(value)
        if shape is not None:
            value.shape = ir.Shape(shape)
        return value

    def add_buffer_outputs(self, buffers: Mapping[str, ir.Value]) -> None:
        """The running statistics after the batch."""
        for name, value in buffers.items():
            value = self._output(value, f"{name}.new", self.tensors[name].shape)
            self.outputs.append(port(value, "buffer", buffer=name))

    def add_loss_outputs(self, terms: LossTerms) -> None:
        """The sums of the loss, of the weights and of each metric."""
        self.add_output(terms.loss_sum, "loss_sum", "loss_sum")
        self.add_output(terms.weight_sum, "weight_sum", "weight_sum")
        for slot, value in terms.metrics.items():
            self.add_output(value, f"metric.{slot}", "metric", slot=slot)

    def put_backward_last(self) -> None:
        """Let nodes that need no label stand before those that do.

        ONNX Runtime computes, of what a node reads, first what stands last in the file. So the gradient that arrives at
        a layer is there before the slope that it is multiplied with, which would take memory for that time.
        """
        graph = self.model.graph
        labels = {p.name for p in self.inputs if p.role in ("label", "sample_weight")}
        behind = after(graph, [v for v in graph.inputs if v.name in labels])
        moved = [node for node in graph if not behind.isdisjoint(node.outputs)]
        graph.remove(moved)
        graph.extend(moved)

    def finish(self, *, to_differentiate: bool = False) -> StepGraph:
        """Drop what nothing reads, inputs included, and metadata, unless a gradient is still to come of them."""
        graph = self.model.graph
        raise_scalars(self.op)
        common.RemoveUnusedNodesPass()(self.model)
        common.TopologicalSortPass()(self.model)
        if not to_differentiate:
            common.ClearMetadataAndDocStringPass()(self.model)
        read = {v.name for v in graph.inputs if v.uses() or v.is_graph_output()}
        for value in [v for v in graph.inputs if v.name not in read]:
            graph.inputs.remove(value)
        inputs = tuple(p for p in self.inputs if p.name in read)
        return StepGraph(self.model, inputs, self._marked(inputs))

    def _marked(self, inputs: Sequence[Port]) -> tuple[Port, ...]:
        """The outputs, each with whether it may be written over the input that it replaces."""
        olds = {v.name: v for v in self.model.graph.inputs}
        replaced: dict[tuple[object, ...], list[Port]] = {}
        for p in inputs:
            replaced.setdefault((_replaced(p.role), p.parameter, p.buffer, p.slot), []).append(p)
        marked = []
        for p, new in zip(self.outputs, self.model.graph.outputs, strict=True):
            old = [
                olds[i.name]
                for i in replaced.get((p.role, p.parameter, p.buffer, p.slot), [])
                if i.rows is None or p.rows is None or i.rows == p.rows  # other rows lie elsewhere
            ]
            marked.append(replace(p, in_place=bool(old) and all(may_overwrite(v, new) for v in old)))
        return tuple(marked)


def _replaced(role: Role) -> Role:
    """The role of the output that takes the place of an input of this role."""
    return "gradient" if role == "accumulator" else role


def port(
    value: ir.Value,
    role: Role,
    parameter: str | None = None,
    slot: str | None = None,
    group: str | None = None,
    buffer: str | None = None,
    rows: tuple[int, int] | None = None,
) -> Port:
    """The manifest's record of a graph input or output; an unknown dimension is `?`."""
    assert value.dtype is not None and value.name is not None
    shape = tuple(d if d is not None else "?" for d in dims(value))
    return Port(value.name, role, value.dtype.numpy().name, shape, parameter, slot, group, buffer=buffer, rows=rows)


def element_type(numpy_name: str) -> ir.DataType:
    """The ONNX element type of a numpy name."""
    return ir.DataType.from_numpy(np.dtype(numpy_name))
