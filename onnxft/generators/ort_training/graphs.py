"""The graphs that onnxruntime-training is handed: the model with its loss, to be differentiated and to be evaluated.

The default form computes onnxft's own loss, so that row weights, padding and accumulation are exact:

    loss = loss_sum / d,  d = normalizer where that is above 0, else weight_sum

With the normalizer 0 the gradients are those of the mean; with 1 those of sums, which add up over several batches. The
standalone form takes the model's inputs and the labels and nothing else, and its loss is one of `standalone.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxft.errors import ConfigError, SelectionError, near
from onnxft.generators.ort_training.labels import nan_where_any, wrong_labels
from onnxft.generators.ort_training.standalone import mean_loss
from onnxft.graph.builder import add_input, cast_like
from onnxft.graph.forward import Forward
from onnxft.manifest import LABELS, Loss
from onnxft.step.losses import LossTerms
from onnxft.step.step_graph import StepGraph, StepGraphBuilder, port


def training_graph(
    forward: Forward, trainable: Sequence[str], loss: Loss, additional: Sequence[str] = (), *, standalone: bool = False
) -> StepGraph:
    """The model in training behaviour and its loss, which is the first output; parameters are initializers.

    Args:
        forward: the model; it is not changed.
        trainable: parameters that must reach the loss.
        loss: of the manifest.
        additional: values that are outputs too, under their names: outputs of the model, or what lies inside it.
        standalone: the form.

    Raises:
        SelectionError: a trained parameter does not reach the loss.
        ConfigError: an additional output is unknown, or the standalone form has no such loss.
        ModelError: the loss reads an unknown output, or a random operator cannot become an input.
    """
    graph = StepGraphBuilder(forward.train.clone(), forward)
    _find_additional(graph, additional)
    if standalone:
        _add_mean_loss(graph, loss)
        _add_outputs(graph, graph.model_outputs)
    else:
        graph.add_random_inputs()
        terms = graph.add_loss(loss)
        op = graph.op
        normalizer = add_input(op, _free_name(graph, "normalizer"), ir.DataType.FLOAT, [])
        graph.inputs.append(port(normalizer, "normalizer"))
        given = cast_like(op, normalizer, terms.weight_sum)
        _add_weighted_loss(graph, loss, terms, op.Where(op.Greater(given, 0.0), given, terms.weight_sum))
        _add_outputs(graph, additional)
    made = graph.finish(to_differentiate=True)
    _check_trainable(forward.train.graph, made.model.graph, trainable, loss.output)
    return made


def evaluation_graph(
    forward: Forward, loss: Loss, additional: Sequence[str] = (), *, standalone: bool = False
) -> StepGraph:
    """The model in inference behaviour: loss, sums and metrics, and all its outputs; arguments as in `training_graph`.

    Raises:
        ConfigError: an additional output is unknown.
    """
    graph = StepGraphBuilder(forward.infer.clone(), forward)
    _find_additional(graph, additional)
    if standalone:
        _add_mean_loss(graph, loss)
    else:
        terms = graph.add_loss(loss)
        _add_weighted_loss(graph, loss, terms, terms.weight_sum)
    _add_outputs(graph, graph.model_outputs)
    return graph.finish()


def use_parameter_inputs(model: ir.Model, parameters: Sequence[str], forward: Forward) -> None:
    """Make the parameters inputs of an evaluation graph, in place and in this order.

    onnxruntime-training feeds it with the parameters of the training graph in the order that they have there, whatever
    their names: so all of them are inputs here, those too that nothing reads. The ports do not list them.
    """
    graph, shapes = model.graph, {t.name: t.shape for t in forward.tensors}
    for name in parameters:
        value = graph.initializers.pop(name, None)
        if value is None:
            value = ir.val(name, ir.DataType.FLOAT, list(shapes[name]))
        value.const_value = None
        graph.inputs.append(value)


def _add_weighted_loss(graph: StepGraphBuilder, loss: Loss, terms: LossTerms, denominator: ir.Value) -> None:
    op = graph.op
    value = op.Div(terms.loss_sum, denominator)
    if loss.kind == "cross_entropy":
        labels = next(v for v in graph.model.graph.inputs if v.name == LABELS)
        value = nan_where_any(op, wrong_labels(op, loss, graph.model_outputs[loss.output], labels), value)
    graph.add_output(value, _free_name(graph, "loss"), "loss")
    graph.add_loss_outputs(terms)


def _add_mean_loss(graph: StepGraphBuilder, loss: Loss) -> None:
    """The loss as it is, under the model's own name where it is an output of the model."""
    value = mean_loss(graph, loss)
    own = value is graph.model_outputs.get(loss.output)
    graph.add_output(value, loss.output if own else _free_name(graph, "loss"), "loss")


def _find_additional(graph: StepGraphBuilder, names: Sequence[str]) -> None:
    """Let values inside the model be outputs of it, before a random operator among them becomes an input."""
    inside = {v.name: v for node in graph.model.graph for v in node.outputs if v.name and v.shape is not None}
    for name in names:
        if name not in graph.model_outputs and name not in inside:
            hint = near(name, graph.model_outputs)
            raise ConfigError(f"the model has no value '{name}' that could be an additional output.{hint}")
        if name not in graph.model_outputs:
            graph.model_outputs[name] = inside[name]


def _add_outputs(graph: StepGraphBuilder, names: Iterable[str]) -> None:
    """Outputs of the model, each once; the loss may be one of them."""
    for name in names:
        if name not in {p.name for p in graph.outputs}:
            graph.add_output(graph.model_outputs[name], name, "output")


def _check_trainable(given: ir.Graph, made: ir.Graph, trainable: Sequence[str], output: str) -> None:
    """Every trained parameter is left over; otherwise the package says `couldn't find the consumer node`."""
    for name in trainable:
        if name in given.initializers and name not in made.initializers:
            raise SelectionError(
                f"'{name}' does not reach the output '{output}' of the loss, so it would never be trained. "
                "Freeze it, or choose another output for the loss."
            )


def _free_name(graph: StepGraphBuilder, name: str) -> str:
    """`name`, lengthened where something in the graph or an output of the model has it."""
    inner = graph.model.graph
    values = (*inner.inputs, *inner.initializers.values(), *(v for node in inner for v in node.outputs))
    taken = {v.name for v in values} | set(graph.model_outputs)
    while name in taken:
        name += "_"
    return name
