"""Trained BatchNorm: layers that normalise by the statistics of the batch and move their running ones, as torch does.

While the graph is differentiated such a layer is one node, BatchNormalization in training mode, whose rule
(`grad/rules/normalization.py`) is the short way back. Then it is decomposed, since few providers run that mode.
torch's `num_batches_tracked` is not kept: with a fixed momentum nothing reads it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxft.errors import ModelError, SelectionError, near
from onnxft.graph.builder import Op, count, per_channel
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import Dim, dims, set_dims

_STATISTICS = (3, 4)
"""Which inputs of BatchNormalization are the running mean and variance."""


@dataclass(frozen=True)
class BatchNorm:
    """One BatchNorm layer of a model."""

    name: str
    mean: str
    """Name of its running mean, as is `var` of its running variance."""
    var: str
    over: tuple[Dim, ...]
    """Dimensions of its input that one statistic is taken over, the batch first."""
    momentum: float
    """Weight of the batch in the running statistics (torch's meaning of the word)."""


def layers(forward: Forward) -> dict[str, BatchNorm]:
    """{layer: it} of the BatchNorm layers that keep running statistics, in the order of the model."""
    tensors = {t.name for t in forward.tensors}
    found: dict[str, BatchNorm] = {}
    for node in _nodes(forward.train.graph):
        mean, var = (v.name if v is not None else None for v in (node.inputs[i] for i in _STATISTICS))
        if mean in tensors and var in tensors:
            name = mean.rpartition(".")[0] or mean
            found.setdefault(name, BatchNorm(name, mean, var, _over(node), _momentum(node)))
    return found


def choose(forward: Forward, patterns: Sequence[str]) -> tuple[BatchNorm, ...]:
    """The layers whose name, or that of one of their tensors, matches a pattern.

    Raises:
        SelectionError: a pattern matches no BatchNorm layer, or one whose statistics cannot be trained.
    """
    known = layers(forward)
    names = {name: _names(forward, name) for name in known}
    for pattern in patterns:
        if not any(_matches(names[name], [pattern]) for name in known):
            hint = near(pattern.rstrip("*?."), known) or " `onnxft export --dry-run` lists the parameters."
            none = "" if known else f" '{forward.name}' has no BatchNorm layer with running statistics."
            raise SelectionError(f"the pattern '{pattern}' matches no BatchNorm layer.{none or hint}")
    chosen = tuple(layer for name, layer in known.items() if _matches(names[name], patterns))
    for layer in chosen:
        reason = forward.untrainable_norms.get(layer.name)
        if reason is None and not 0.0 < layer.momentum <= 1.0:
            reason = f"its momentum is {layer.momentum:g}, which must be above 0 and at most 1"
        if reason is not None:
            raise SelectionError(
                f"the running statistics of the BatchNorm layer '{layer.name}' cannot be trained: {reason}. "
                "Leave it frozen, or change the layer before the export."
            )
    return chosen


def use_batch_statistics(op: Op, buffers: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Let the BatchNorm layers that read `buffers` normalise by the batch, in place; return {buffer: its new value}.

    r' = (1 - m) r + m s  with s the mean, or the variance n / (n - 1) times that which normalises, and m the
    momentum. A layer that is used twice moves them twice, in the order of the graph.

    Raises:
        ModelError: something else than a BatchNorm reads one of the buffers.
    """
    names = {value: name for name, value in buffers.items()}
    for value, name in names.items():
        for user, index in value.uses():
            if user.op_type != "BatchNormalization" or index not in _STATISTICS:
                raise ModelError(
                    f"{user.op_type} '{user.name}' reads the running statistic '{name}', which changes in every step "
                    "if its layer is trained. Leave that BatchNorm layer frozen."
                )
    new = dict(buffers)
    for node in _nodes(op.builder.graph):
        x, mean, var = (node.inputs[i] for i in (0, *_STATISTICS))
        if mean not in names or var not in names:
            continue
        assert x is not None
        momentum, n = _momentum(node), count(op, x, _others(x))
        _set_training(node)
        _, batch_mean, batch_var = node.outputs
        unbiased = op.Mul(batch_var, op.Div(n, op.Sub(n, 1.0)))
        for buffer, statistic in ((names[mean], batch_mean), (names[var], unbiased)):
            new[buffer] = op.Add(op.Mul(new[buffer], 1.0 - momentum), op.Mul(statistic, momentum))
    return new


def decompose(op: Op) -> None:
    """Write every BatchNormalization that `use_batch_statistics` made as arithmetic, in place.

    y = (x - mean) * scale / sqrt(var + epsilon) + bias  with the mean and, from the centred values, the variance of
    the batch. The rule's own x - mean is the same expression, so a runtime computes it once. The old nodes stay
    without readers until the graph is finished: the builder numbers its nodes by their count.
    """
    graph = op.builder.graph
    for node in _nodes(graph):
        if not _is_training(node):
            continue
        x, scale, bias, *_ = node.inputs
        assert x is not None and scale is not None and bias is not None
        others = _others(x)
        mean = op.ReduceMean(x, others, keepdims=0)
        centred = op.Sub(x, per_channel(op, mean, x))
        var = op.ReduceMean(op.Mul(centred, centred), others, keepdims=0)
        inverse = op.Reciprocal(op.Sqrt(op.Add(var, node.attributes.get_float("epsilon", 1e-5))))
        y = op.Add(op.Mul(centred, per_channel(op, op.Mul(scale, inverse), x)), per_channel(op, bias, x))
        for old, value in zip(node.outputs, (y, mean, var), strict=True):
            set_dims(value, dims(old))
            old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.sort()


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in list(graph) if node.op_type == "BatchNormalization")


def _others(x: ir.Value) -> list[int]:
    """All axes but that of the channels."""
    return [axis for axis in range(len(dims(x))) if axis != 1]


def _over(node: ir.Node) -> tuple[Dim, ...]:
    x = node.inputs[0]
    assert x is not None
    if x.shape is None:  # a layer that stays frozen needs no shape
        return (None,)
    return tuple(dims(x)[axis] for axis in _others(x))


def _momentum(node: ir.Node) -> float:
    """torch's momentum; the attribute is the float32 nearest to 1 minus it, the shortest decimal of which is meant."""
    return 1.0 - float(str(np.float32(node.attributes.get_float("momentum", 0.9))))


def _set_training(node: ir.Node) -> None:
    """Training mode with momentum 0: the second and third outputs are then the statistics of the batch."""
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    y, like = node.outputs[0], node.inputs[_STATISTICS[0]]
    assert like is not None
    node.resize_outputs(3)
    for value, what in zip(node.outputs[1:], ("mean", "var"), strict=True):
        value.name, value.type, value.shape = f"{y.name}.{what}", like.type, like.shape


def _is_training(node: ir.Node) -> bool:
    """Whether `_set_training` made it so: a source's own training mode has another momentum."""
    attributes = node.attributes
    return bool(attributes.get_int("training_mode", 0)) and attributes.get_float("momentum", 0.9) == 0.0


def _names(forward: Forward, layer: str) -> list[str]:
    """The name of a layer and those of its tensors."""
    return [layer, *(t.name for t in forward.tensors if t.name.rpartition(".")[0] == layer)]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
