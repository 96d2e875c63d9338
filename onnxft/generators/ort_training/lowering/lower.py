"""The whole of the lowering, node by node along the path from the trained parameters to the loss."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from onnxft.errors import ModelError, SelectionError, near
from onnxft.generators.ort_training.lowering.batch_norm import decompose_batch_norm
from onnxft.generators.ort_training.lowering.forms import adapt_forms
from onnxft.generators.ort_training.lowering.gradient_function import use_native_rule
from onnxft.generators.ort_training.lowering.limits import MAX_IR_VERSION, check_limits, check_trainable
from onnxft.generators.ort_training.lowering.outputs import add_missing_outputs
from onnxft.generators.ort_training.lowering.trusted import is_trusted
from onnxft.grad.backward import nodes_between
from onnxft.graph.builder import is_float
from onnxft.graph.lowering.splice import Names


def lower(model: ir.Model, trainable: Sequence[str], output: str) -> ir.Model:
    """A copy of `model` that onnxruntime-training trains as torch would.

    Args:
        model: in the internal form, its parameters initializers; with or without the nodes of a loss.
        trainable: names of the initializers that are trained.
        output: the graph output that is differentiated, or that the worker builds a loss on.

    Raises:
        SelectionError: a trained name is no float32 initializer, or does not reach the output.
        GradientError: an operator on the path has no gradient there and no native rule, a BatchNormalization is in
            training mode, or its statistics are computed.
        ModelError: an operator set, the number of bytes or the output does not fit.
    """
    model = model.clone()
    graph = model.graph
    check_limits(model)
    check_trainable(graph, trainable)
    adapt_forms(graph)
    for node in list(graph):
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            decompose_batch_norm(graph, node, trainable)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
    parameters = [graph.initializers[name] for name in trainable if name in graph.initializers]
    reached = _lower_path(model, parameters, _output(graph, output))
    for name in trainable:
        # Else the package says `couldn't find the consumer node`, or it would train with a gradient of 0.
        if name not in reached:
            raise SelectionError(
                f"'{name}' does not reach the output '{output}' of the loss, so it would never be trained. "
                "Freeze it, or choose another output for the loss."
            )
    ClearMetadataAndDocStringPass()(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model


def _lower_path(model: ir.Model, parameters: Sequence[ir.Value], loss: ir.Value) -> set[str | None]:
    """Lower every node that a gradient passes, from the loss backwards; names of the values that one reaches.

    Where a rule has none for an input, the function of the node hands on zeros: the package asks for all.
    """
    names, path = Names(model), nodes_between(parameters, loss)
    carry = {*parameters, *(y for node in path for y in node.outputs if is_float(y))}
    handed, reached = {loss}, {loss}
    for node in reversed(path):
        given = [j for j, y in enumerate(node.outputs) if y in handed]
        if not given:
            continue
        wanted, zeros = [i for i, x in enumerate(node.inputs) if x in carry], set()
        inputs = [x for i in wanted if (x := node.inputs[i]) is not None]
        if node.domain in ("", "ai.onnx") and is_trusted(node, wanted):
            add_missing_outputs(node, names)
        else:
            for j, y in enumerate(node.outputs):  # the gradient may read what nothing else does
                y.name = y.name or names.fresh(f"{node.name or node.op_type}_{j}")
            zeros = use_native_rule(model, node, wanted, given, parameters)
        handed.update(inputs)
        if any(node.outputs[j] in reached for j in given):
            reached.update(x for i, x in zip(wanted, inputs, strict=True) if i not in zeros)
    return {value.name for value in reached}


def _output(graph: ir.Graph, name: str) -> ir.Value:
    found = {v.name: v for v in graph.outputs}
    if name not in found:
        raise ModelError(f"the model has no output '{name}'.{near(name, [n for n in found if n])}")
    return found[name]
