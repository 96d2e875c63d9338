"""The losses of the standalone form: means over a batch, which are those of onnxruntime-training's own loss blocks.

They are cross entropy, mean squared and absolute error and binary cross entropy, with the options that its blocks have.
The formulas are onnxft's: its binary cross entropy takes the logarithm of a sigmoid, so that it is NaN from logits of
about 17, and its cross entropy names the wrong labels where the classes are the last of several axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxft.errors import ConfigError, ModelError, near
from onnxft.generators.ort_training.labels import nan_where_any, wrong_labels
from onnxft.graph.builder import Op, add_input, constant
from onnxft.graph.shapes import dims
from onnxft.manifest import LABELS, Loss
from onnxft.step.losses import label_type, loss_builder
from onnxft.step.step_graph import StepGraphBuilder, port

KINDS = ("cross_entropy", "mse", "l1", "bce_with_logits", "model")
_REFUSED = ("label_smoothing", "shift")
"""Options of a loss of `KINDS` that no block has."""


def mean_loss(graph: StepGraphBuilder, loss: Loss) -> ir.Value:
    """Append the loss () and its labels to a graph; of the kind `model` only the mean, where it is one for each row.

    Raises:
        ConfigError: onnxruntime-training has no such loss, or not one of its options.
        ModelError: the model has no such output.
    """
    if loss.output not in graph.model_outputs:
        raise ModelError(f"the model has no output '{loss.output}'.{near(loss.output, graph.model_outputs)}")
    _check(loss)
    op, output = graph.op, graph.model_outputs[loss.output]
    if loss.kind == "model":
        return output if loss.scalar else op.ReduceMean(output, keepdims=0)
    typed = label_type(loss, output)
    assert typed is not None
    labels = add_input(op, LABELS, *typed)
    graph.inputs.append(port(labels, "label"))
    if loss.kind == "cross_entropy":
        return _cross_entropy(op, loss, output, labels)
    ones = op.Expand(constant(op, [1.0], output), op.Shape(output, start=0, end=1))
    terms = loss_builder(loss.kind)(op, loss, output, labels, ones)
    return op.Div(terms.loss_sum, terms.weight_sum)


def _cross_entropy(op: Op, what: Loss, logits: ir.Value, labels: ir.Value) -> ir.Value:
    """l = -Σ v_label log_softmax(logits)_label / Σ v_label over the labels that are not ignored.

    logits (batch, classes, ...) with the classes along `class_axis`, labels (batch, ...) int64, v `class_weights`:
    torch.nn.functional.cross_entropy, as one operator that has a gradient of its own.
    """
    if what.class_axis != 1:
        rank = len(dims(logits))
        others = [axis for axis in range(1, rank) if axis != what.class_axis]
        logits = op.Transpose(logits, perm=[0, what.class_axis, *others])
    wrong = wrong_labels(op, replace(what, class_axis=1), logits, labels)
    inputs = [logits, op.Where(wrong, 0, labels)]
    if what.class_weights:
        inputs.append(constant(op, np.asarray(what.class_weights), logits))
    ignored = {} if what.ignore_index is None else {"ignore_index": what.ignore_index}
    # The gradient reads the second output, the logarithms of the probabilities.
    loss_and_logs = op.SoftmaxCrossEntropyLoss(*inputs, reduction="mean", **ignored, _outputs=2)
    return nan_where_any(op, wrong, cast(Sequence[ir.Value], loss_and_logs)[0])


def _check(loss: Loss) -> None:
    if loss.kind not in KINDS:
        raise ConfigError(
            f"the standalone form takes the losses of onnxruntime-training, {', '.join(KINDS[:-1])}, or one that the "
            f"model computes (model), not {loss.kind}. Leave --standalone out, and '{loss.kind}' is exact."
        )
    plain = Loss(loss.kind, loss.output)
    for name in _REFUSED:
        if getattr(loss, name) != getattr(plain, name):
            raise ConfigError(
                f"the {loss.kind} of onnxruntime-training has no {name} (here {getattr(loss, name)}), so the "
                "standalone form has none. Leave that option or --standalone out."
            )
