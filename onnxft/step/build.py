"""The graphs of a training step, from a forward model, a selection, a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.errors import ModelError, near
from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH, LABELS, SAMPLE_WEIGHTS, GraphRole, Loss, Optimizer, Port, Role
from onnxft.step.batch_norm import decompose, use_batch_statistics
from onnxft.step.losses import LossTerms, label_type, loss_builder
from onnxft.step.optimizers import optimizer_transform
from onnxft.step.randomness import randomness_to_inputs
from onnxft.step.select import Selection
from onnxft.step.shared_weights import separate_shared_weights
from onnxft.step.transforms import Scalars, clip_by_global_norm, clip_by_value


@dataclass(frozen=True)
class StepGraph:
    """One graph and the role of each of its inputs and outputs."""

    model: ir.Model
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def build_step(forward: Forward, selection: Selection, loss: Loss, optimizer: Optimizer) -> dict[GraphRole, StepGraph]:
    """The roles `gradients`, `update`, `train`, `average` and `eval`.

    Raises:
        GradientError: an operator between a trained parameter and the loss has no derivative.
        ModelError: the loss reads an unknown output, or a random operator cannot become an input.
    """
    train = _Graph(forward.train.clone(), forward)
    train.add_random_inputs()
    train.add_parameters(selection)
    train.add_buffers(selection)
    buffers = use_batch_statistics(train.op, {name: train.values[name] for name in selection.buffers})
    terms = train.add_loss(loss)
    xs = {name: train.values[name] for name in selection.trainable}
    found = backward(train.op, terms.loss_sum, list(xs.values()))
    gradients = {name: found[x] for name, x in xs.items()}
    decompose(train.op)
    return {
        "gradients": _gradients_graph(train, terms, gradients, buffers),
        "update": _update_graph(forward, selection, optimizer),
        "train": _train_graph(train, terms, gradients, buffers, selection, optimizer),
        "average": _average_graph(forward, selection),
        "eval": _eval_graph(forward, selection, loss),
    }


def _gradients_graph(
    train: _Graph, terms: LossTerms, gradients: Mapping[str, ir.Value], buffers: Mapping[str, ir.Value]
) -> StepGraph:
    """accumulator + gradient, for each parameter; on a copy, since the training graph goes on from the same point."""
    graph = train.model.graph
    values = [terms.loss_sum, terms.weight_sum, *terms.metrics.values(), *gradients.values(), *buffers.values()]
    graph.outputs.extend(values)
    clone = train.model.clone()
    graph.outputs.clear()
    cloned = dict(zip(values, clone.graph.outputs, strict=True))
    copy = _Graph(clone, train.forward)
    copy.inputs = list(train.inputs)
    metrics = {name: cloned[value] for name, value in terms.metrics.items()}
    copy.add_loss_outputs(LossTerms(cloned[terms.loss_sum], cloned[terms.weight_sum], metrics))
    for name, g in gradients.items():
        accumulator = copy.add_state_input(name, "accumulator", "gradient", f"{name}.accumulator")
        total = copy.op.Add(accumulator, cloned[g])
        copy.add_output(total, f"{name}.gradient", "gradient", parameter=name, slot="gradient")
    copy.add_buffer_outputs({name: cloned[value] for name, value in buffers.items()})
    return copy.finish()


def _train_graph(
    train: _Graph,
    terms: LossTerms,
    gradients: Mapping[str, ir.Value],
    buffers: Mapping[str, ir.Value],
    selection: Selection,
    optimizer: Optimizer,
) -> StepGraph:
    """Gradients and update in one graph, for a batch that is the whole step."""
    train.add_loss_outputs(terms)
    means = {name: train.op.Div(g, terms.weight_sum) for name, g in gradients.items()}
    _add_update(train, means, selection, optimizer)
    train.add_buffer_outputs(buffers)
    return train.finish()


def _update_graph(forward: Forward, selection: Selection, optimizer: Optimizer) -> StepGraph:
    """From accumulated gradients to new parameters, with clipping."""
    update = _without_model("update", forward, selection)
    op = update.op
    gradients = {
        n: update.add_state_input(n, "accumulator", "gradient", f"{n}.accumulator") for n in selection.trainable
    }
    weight_sum = update.add_scalar("weight_sum", "weight_sum")
    means = {name: op.Div(g, weight_sum) for name, g in gradients.items()}
    means = clip_by_value(op, means, update.add_scalar("max_value", "max_value"))
    means = clip_by_global_norm(op, means, update.add_scalar("max_norm", "max_norm"))
    _add_update(update, means, selection, optimizer)
    return update.finish()


def _average_graph(forward: Forward, selection: Selection) -> StepGraph:
    """a' = a + w (p - a), w = 1 - decay: the exponential moving average of each parameter."""
    average = _without_model("average", forward, selection)
    op, weight = average.op, average.add_scalar("average_weight", "average_weight")
    for name in selection.trainable:
        a = average.add_state_input(name, "average", "average", f"{name}.average")
        new = op.Add(a, op.Mul(weight, op.Sub(average.values[name], a)))
        average.add_output(new, f"{name}.average.new", "average", parameter=name, slot="average")
    return average.finish()


def _without_model(name: str, forward: Forward, selection: Selection) -> _Graph:
    """A graph that reads the parameters and nothing of the model."""
    graph = _Graph(
        ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name), ir_version=IR_VERSION), forward
    )
    graph.add_parameters(selection)
    return graph


def _eval_graph(forward: Forward, selection: Selection, loss: Loss) -> StepGraph:
    """Loss and outputs in inference behaviour."""
    graph = _Graph(forward.infer.clone(), forward)
    graph.add_parameters(selection)
    graph.add_buffers(selection)
    terms = graph.add_loss(loss)
    graph.add_loss_outputs(terms)
    for name, value in graph.model_outputs.items():
        graph.add_output(value, name, "output")
    return graph.finish()


def _add_update(graph: _Graph, means: Mapping[str, ir.Value], selection: Selection, optimizer: Optimizer) -> None:
    """p' = p - transform(mean gradient), parameter by parameter, so that each stays in cache."""
    op, transform = graph.op, optimizer_transform(optimizer)
    step = graph.add_scalar("step", "step")
    shared: dict[str, ir.Value] = {}
    groups = dict.fromkeys(selection.groups[name] for name in selection.trainable)
    rates = {g: graph.add_scalar(f"lr.{g}", "lr", group=g) for g in groups}
    decays = {g: graph.add_scalar(f"weight_decay.{g}", "weight_decay", group=g) for g in groups}
    for name in selection.trainable:
        p, group = graph.values[name], selection.groups[name]
        state = {s: graph.add_state_input(name, "state", s, f"{name}.{s}") for s in transform.slots}
        scalars = Scalars(rates[group], decays[group], step, shared)
        delta, new = transform.apply(op, means[name], p, state, scalars)
        graph.add_output(op.Sub(p, delta), f"{name}.new", "parameter", parameter=name)
        for slot, value in new.items():
            graph.add_output(value, f"{name}.{slot}.new", "state", parameter=name, slot=slot)


class _Graph:
    """A graph under construction with the ports it has so far."""

    def __init__(self, model: ir.Model, forward: Forward) -> None:
        self.model = model
        self.forward = forward
        self.op: Op = builder(model.graph)
        self.tensors = {t.name: t for t in forward.tensors}
        self.inputs = [_port(v, "input") for v in model.graph.inputs]
        self.outputs: list[Port] = []
        self.values: dict[str, ir.Value] = {}
        self.model_outputs = dict(zip(forward.outputs, model.graph.outputs, strict=False))
        model.graph.outputs.clear()

    def add_random_inputs(self) -> None:
        self.model.graph.outputs.extend(self.model_outputs.values())
        self.inputs += randomness_to_inputs(self.op)
        # A random operator may have been the output itself.
        self.model_outputs = dict(zip(self.model_outputs, self.model.graph.outputs, strict=True))
        self.model.graph.outputs.clear()

    def add_parameters(self, selection: Selection) -> None:
        """Trained parameters become inputs under their names."""
        for name in selection.trainable:
            self.inputs.append(_port(self._to_input(name), "parameter", parameter=name))
        separate_shared_weights(self.op)

    def add_buffers(self, selection: Selection) -> None:
        """Trained running statistics become inputs under their names."""
        for name in selection.buffers:
            self.inputs.append(_port(self._to_input(name), "buffer", buffer=name))

    def _to_input(self, name: str) -> ir.Value:
        tensor = self.tensors[name]
        old = self.model.graph.initializers.pop(name, None)
        value = self.values[name] = add_input(self.op, name, _element_type(tensor.dtype), tensor.shape)
        if old is not None:
            old.name = f"{name}.initial"
            old.replace_all_uses_with(value)
        return value

    def add_loss(self, loss: Loss) -> LossTerms:
        if loss.output not in self.model_outputs:
            raise ModelError(f"the model has no output '{loss.output}'.{near(loss.output, self.model_outputs)}")
        output = self.model_outputs[loss.output]
        labels = None
        if typed := label_type(loss, output):
            labels = add_input(self.op, LABELS, *typed)
            self.inputs.append(_port(labels, "label"))
        weights = add_input(self.op, SAMPLE_WEIGHTS, ir.DataType.FLOAT, [BATCH])
        self.inputs.append(_port(weights, "sample_weight"))
        return loss_builder(loss.kind)(self.op, loss, output, labels, weights)

    def add_scalar(self, name: str, role: Role, group: str | None = None) -> ir.Value:
        dtype = next(iter(self.values.values())).dtype or ir.DataType.FLOAT
        value = add_input(self.op, name, dtype, [])
        self.inputs.append(_port(value, role, group=group))
        return value

    def add_state_input(self, parameter: str, role: Role, slot: str, name: str) -> ir.Value:
        tensor = self.tensors[parameter]
        value = add_input(self.op, name, _element_type(tensor.dtype), tensor.shape)
        self.inputs.append(_port(value, role, parameter=parameter, slot=slot))
        return value

    def add_output(
        self,
        value: ir.Value,
        name: str,
        role: Role,
        parameter: str | None = None,
        slot: str | None = None,
        buffer: str | None = None,
    ) -> None:
        if value.is_graph_input() or value.is_graph_output():
            value = self.op.Identity(value)
        value.name = name
        self.model.graph.outputs.append(value)
        tensor = self.tensors.get(parameter or buffer or "")
        if tensor is not None:
            value.shape = ir.Shape(tensor.shape)
        self.outputs.append(_port(value, role, parameter, slot, buffer=buffer))

    def add_buffer_outputs(self, buffers: Mapping[str, ir.Value]) -> None:
        """The running statistics after the batch."""
        for name, value in buffers.items():
            self.add_output(value, f"{name}.new", "buffer", buffer=name)

    def add_loss_outputs(self, terms: LossTerms) -> None:
        self.add_output(terms.loss_sum, "loss_sum", "loss_sum")
        self.add_output(terms.weight_sum, "weight_sum", "weight_sum")
        for slot, value in terms.metrics.items():
            self.add_output(value, f"metric.{slot}", "metric", slot=slot)

    def finish(self) -> StepGraph:
        """Drop what nothing reads, inputs included."""
        graph = self.model.graph
        common.RemoveUnusedNodesPass()(self.model)
        common.TopologicalSortPass()(self.model)
        common.ClearMetadataAndDocStringPass()(self.model)
        read = {v.name for v in graph.inputs if v.uses() or v.is_graph_output()}
        for value in [v for v in graph.inputs if v.name not in read]:
            graph.inputs.remove(value)
        return StepGraph(self.model, tuple(p for p in self.inputs if p.name in read), tuple(self.outputs))


def _port(
    value: ir.Value,
    role: Role,
    parameter: str | None = None,
    slot: str | None = None,
    group: str | None = None,
    buffer: str | None = None,
) -> Port:
    assert value.dtype is not None and value.name is not None
    shape = tuple(d if d is not None else "?" for d in dims(value))
    return Port(value.name, role, value.dtype.numpy().name, shape, parameter, slot, group, buffer=buffer)


def _element_type(numpy_name: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(numpy_name))
