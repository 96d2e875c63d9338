"""The graphs of a training step, from a forward model, a selection, a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.grad.backward import backward
from onnxft.graph.builder import constant
from onnxft.graph.forward import Forward
from onnxft.graph.gelu import gather_gelu, spread_gelu
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import GraphRole, Loss, Optimizer
from onnxft.step.batch_norm import decompose, use_batch_statistics
from onnxft.step.channels_first import put_channels_first
from onnxft.step.fold import fold_batch_norm, fold_padding
from onnxft.step.frozen.again import widen_again
from onnxft.step.losses import LossTerms
from onnxft.step.masks import multiply_masks
from onnxft.step.optimizers import update_of
from onnxft.step.picked_rows import rows_of_gradient
from onnxft.step.recompute import recompute
from onnxft.step.row_blocks import RowBlock
from onnxft.step.segments import Recomputation, find_segments, nothing_recomputed
from onnxft.step.select import Selection
from onnxft.step.step_graph import StepGraph, StepGraphBuilder
from onnxft.step.updates import Scalars, clipped


def build_step(forward: Forward, selection: Selection, loss: Loss, optimizer: Optimizer) -> dict[GraphRole, StepGraph]:
    """The roles `gradients`, `batch_gradients`, `train`, `clip`, `update`, `average` and `eval`.

    Raises:
        GradientError: an operator between a trained parameter and the loss has no derivative.
        ModelError: the loss reads an unknown output, or a random operator cannot become an input.
    """
    return {
        **differentiated(forward, selection, loss, optimizer),
        "clip": _clip_graph(forward, selection),
        "update": _update_graph(forward, selection, optimizer),
        "average": _average_graph(forward, selection),
        "eval": _eval_graph(forward, selection, loss),
    }


def differentiated(
    forward: Forward,
    selection: Selection,
    loss: Loss,
    optimizer: Optimizer,
    recomputation: Recomputation | None = None,
) -> dict[GraphRole, StepGraph]:
    """The roles with a backward pass, `gradients`, `batch_gradients` and `train`, which read activations that
    `recomputation` names anew.

    Raises:
        SelectionError: there is nothing for `recomputation` to compute again.
        GradientError, ModelError: as `build_step`.
    """
    train = StepGraphBuilder(forward.train.clone(), forward)
    train.add_random_inputs()
    train.add_parameters(selection)
    train.add_buffers(selection)
    buffers = use_batch_statistics(train.op, {name: train.values[name] for name in selection.buffers})
    fold_padding(train.op.builder.graph)
    fold_batch_norm(train.op, [train.values[name] for name in selection.trainable])
    gather_gelu(train.op.builder.graph)
    terms = train.add_loss(loss)
    xs = {name: train.values[name] for name in selection.trainable}
    outputs = [terms.loss_sum, terms.weight_sum, *terms.metrics.values()]
    put_channels_first(train.op, xs.values(), [*outputs, *buffers.values()])
    before = set(train.model.graph)
    segments = find_segments(train, outputs, recomputation) if recomputation else ()
    # The training graph differentiates the mean over the rows, so that no gradient is divided afterwards.
    seed = train.op.Reciprocal(terms.weight_sum)
    given = [v for segment in segments for v in segment.given]
    found = backward(train.op, terms.loss_sum, list(xs.values()), given, seed)
    gradients = {name: found[x] for name, x in xs.items()}
    again = recompute(train.op, segments, found, [*outputs, *buffers.values()], gradients.values())
    if recomputation and not again:
        raise nothing_recomputed(forward, recomputation)
    widen_again(train.op, before, forward.stored)
    spread_gelu(train.op)
    multiply_masks(train.op, before, xs.values(), terms.loss_sum)
    decompose(train.op)
    train.put_backward_last()
    return {
        "gradients": _gradients_graph(train, terms, gradients, buffers, seed, accumulates=True),
        "batch_gradients": _gradients_graph(train, terms, gradients, buffers, seed, accumulates=False),
        "train": _train_graph(train, terms, gradients, buffers, selection, optimizer),
    }


def _gradients_graph(
    train: StepGraphBuilder,
    terms: LossTerms,
    gradients: Mapping[str, ir.Value],
    buffers: Mapping[str, ir.Value],
    seed: ir.Value,
    *,
    accumulates: bool,
) -> StepGraph:
    """The gradient of the sum for each parameter, added to its accumulator where the graph `accumulates`, with 1 in
    the place of `seed`; on a copy, since the training graph goes on from the same point.
    """
    graph = train.model.graph
    sums = [terms.loss_sum, terms.weight_sum, *terms.metrics.values()]
    values = [*sums, *gradients.values(), *buffers.values(), seed]
    graph.outputs.extend(values)
    clone = train.model.clone()
    graph.outputs.clear()
    cloned = dict(zip(values, clone.graph.outputs, strict=True))
    copy = StepGraphBuilder(clone, train.forward)
    copy.inputs = list(train.inputs)
    cloned[seed].replace_all_uses_with(constant(copy.op, 1.0, seed))
    metrics = {name: cloned[value] for name, value in terms.metrics.items()}
    copy.add_loss_outputs(LossTerms(cloned[terms.loss_sum], cloned[terms.weight_sum], metrics))
    for name, g in gradients.items():
        whole = RowBlock(name)
        total = cloned[g]
        if accumulates:
            accumulator = copy.add_state_input(whole, "accumulator", "gradient", f"{name}.accumulator")
            total = copy.op.Add(accumulator, total)
        copy.add_state_output(total, whole, "gradient", "gradient", f"{name}.gradient")
    copy.add_buffer_outputs({name: cloned[value] for name, value in buffers.items()})
    return copy.finish()


def _train_graph(
    train: StepGraphBuilder,
    terms: LossTerms,
    gradients: Mapping[str, ir.Value],
    buffers: Mapping[str, ir.Value],
    selection: Selection,
    optimizer: Optimizer,
) -> StepGraph:
    """Gradients of the mean and update in one graph, for a batch that is the whole step."""
    train.add_loss_outputs(terms)
    of_blocks: dict[RowBlock, ir.Value] = {}
    for name, g in gradients.items():
        blocks = train.blocks(name)
        of_blocks |= zip(blocks, rows_of_gradient(train.op, g, blocks), strict=True)
    _add_update(train, of_blocks, selection, optimizer)
    train.add_buffer_outputs(buffers)
    return train.finish()


def _clip_graph(forward: Forward, selection: Selection) -> StepGraph:
    """From accumulated gradients to clipped ones."""
    clip, whole = _without_model("clip", forward, selection), [RowBlock(name) for name in selection.trainable]
    sums = {b: clip.add_state_input(b, "accumulator", "gradient", f"{b.parameter}.accumulator") for b in whole}
    weight_sum, max_value, max_norm = (clip.add_scalar(n, n) for n in ("weight_sum", "max_value", "max_norm"))
    for block, g in clipped(clip.op, sums, weight_sum, max_value, max_norm).items():
        clip.add_state_output(g, block, "gradient", "gradient", f"{block.parameter}.gradient")
    return clip.finish()


def _update_graph(forward: Forward, selection: Selection, optimizer: Optimizer) -> StepGraph:
    """From accumulated gradients to new parameters."""
    update = _without_model("update", forward, selection)
    sums = {
        block: update.add_state_input(block, "accumulator", "gradient", f"{name}.accumulator")
        for name in selection.trainable
        for block in update.blocks(name)
    }
    part = update.op.Reciprocal(update.add_scalar("weight_sum", "weight_sum"))
    _add_update(update, sums, selection, optimizer, part)
    return update.finish()


def _average_graph(forward: Forward, selection: Selection) -> StepGraph:
    """a' = a + w (p - a), w = 1 - decay: the exponential moving average of each parameter."""
    average = _without_model("average", forward, selection)
    op, weight = average.op, average.add_scalar("average_weight", "average_weight")
    for name in selection.trainable:
        whole = RowBlock(name)
        a = average.add_state_input(whole, "average", "average", f"{name}.average")
        new = op.Add(a, op.Mul(weight, op.Sub(average.values[name], a)))
        average.add_state_output(new, whole, "average", "average", f"{name}.average.new")
    return average.finish()


def _without_model(name: str, forward: Forward, selection: Selection) -> StepGraphBuilder:
    """A graph that reads the parameters and nothing of the model."""
    graph = StepGraphBuilder(
        ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name), ir_version=IR_VERSION), forward
    )
    graph.add_parameters(selection)
    return graph


def _eval_graph(forward: Forward, selection: Selection, loss: Loss) -> StepGraph:
    """Loss and outputs in inference behaviour."""
    graph = StepGraphBuilder(forward.infer.clone(), forward)
    graph.add_parameters(selection)
    graph.add_buffers(selection)
    terms = graph.add_loss(loss)
    graph.add_loss_outputs(terms)
    for name, value in graph.model_outputs.items():
        graph.add_output(value, name, "output")
    return graph.finish()


def adapter_graph(forward: Forward, selection: Selection) -> ir.Model:
    """The inference graph with adapters, in which everything trained is an initializer that an input may override.

    So ONNX Runtime's LoraAdapter can put its values there; it runs without one too, as the artifact begins.
    """
    model = forward.infer.clone()
    for name in (*selection.trainable, *selection.buffers):
        if name in model.graph.initializers:
            model.graph.inputs.append(model.graph.initializers[name])
    common.ClearMetadataAndDocStringPass()(model)
    return model


def _add_update(
    graph: StepGraphBuilder,
    gradients: Mapping[RowBlock, ir.Value],
    selection: Selection,
    optimizer: Optimizer,
    part: ir.Value | None = None,
) -> None:
    """Each block of a parameter and its state, one by one, so that each stays in cache; `part` as in `Scalars`."""
    op, update = graph.op, update_of(optimizer)
    step = graph.add_scalar("step", "step")
    shared: dict[tuple[str, ir.Value], ir.Value] = {}
    groups = dict.fromkeys(selection.groups[name] for name in selection.trainable)
    rates = {g: graph.add_scalar(f"lr.{g}", "lr", group=g) for g in groups}
    decays = {g: graph.add_scalar(f"weight_decay.{g}", "weight_decay", group=g) for g in groups}
    for block, g in gradients.items():
        name, group = block.parameter, selection.groups[block.parameter]
        state = {s: graph.add_state_input(block, "state", s, f"{name}.{s}") for s in update.slots}
        scalars = Scalars(rates[group], decays[group], step, part, shared)
        moved, new = update.apply(op, g, graph.block(block), state, scalars)
        graph.add_state_output(moved, block, "parameter", None, f"{name}.new")
        for slot, value in new.items():
            graph.add_state_output(value, block, "state", slot, f"{name}.{slot}.new")
