"""Which parameters are trained: globs over their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxft.errors import SelectionError, near
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import ParameterGroup
from onnxft.step.batch_norm import BatchNorm, choose, layers
from onnxft.step.groups import group_parameters


@dataclass(frozen=True)
class Selection:
    """The trained parameters and their groups."""

    trainable: tuple[str, ...]
    groups: dict[str, str]
    """{parameter: group}"""
    skipped: dict[str, str]
    """{tensor that a pattern matched but that is not trained: reason}"""
    batch_norms: tuple[BatchNorm, ...] = ()
    """BatchNorm layers that normalise by the batch and train their running statistics."""
    parameter_groups: tuple[ParameterGroup, ...] = ()
    """Rate and decay of each group."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the running statistics that training moves."""
        return tuple(name for layer in self.batch_norms for name in (layer.mean, layer.var))


def select(
    forward: Forward,
    train: Sequence[str] = ("*",),
    freeze: Sequence[str] = (),
    train_batchnorm: Sequence[str] = (),
    lr_factors: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    no_decay_norms: bool = False,
) -> Selection:
    """Parameters that match a pattern of `train` and none of `freeze`, in the order of the model.

    A pattern matches any of the names of a tied parameter. The pattern `*` leaves out what the source has frozen.
    Buffers are no parameters; running statistics of the BatchNorm layers that match `train_batchnorm` are trained,
    all others are frozen. Groups follow from the rest, see `onnxft.step.groups`.

    Raises:
        SelectionError: a pattern matches nothing, or nothing is left.
    """
    names = [name for t in forward.tensors for name in (t.name, *t.tied_to)]
    for pattern in (*train, *freeze):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            stem = pattern.rstrip("*?.")
            hint = near(stem, names) or " `onnxft export --dry-run` lists the names."
            raise SelectionError(f"the pattern '{pattern}' matches no parameter of '{forward.name}'.{hint}")
    chosen = [t for t in forward.tensors if _matches(t, train) and not _matches(t, freeze)]
    statistics = {name for layer in layers(forward).values() for name in (layer.mean, layer.var)}
    skipped = {t.name: reason for t in chosen if (reason := _unfit(t, statistics))}
    named = [pattern for pattern in train if pattern != "*"]
    for tensor in chosen:
        if tensor.frozen and not _matches(tensor, named):
            skipped.setdefault(tensor.name, f"{tensor.frozen}, and no pattern but * names it")
    trainable = tuple(t.name for t in chosen if t.name not in skipped)
    if not trainable:
        raise SelectionError(
            f"nothing is left to train of '{forward.name}' with train={list(train)} and freeze={list(freeze)}"
            + (f": {'; '.join(f'{n} ({r})' for n, r in list(skipped.items())[:3])}" if skipped else "")
            + "."
        )
    groups, described = group_parameters(forward, trainable, lr_factors or {}, weight_decays or {}, no_decay_norms)
    return Selection(trainable, groups, skipped, choose(forward, train_batchnorm), described)


def _matches(tensor: Tensor, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for name in (tensor.name, *tensor.tied_to) for p in patterns)


def _unfit(tensor: Tensor, statistics: Collection[str]) -> str | None:
    if tensor.kind == "buffer":
        return "a buffer, not a parameter"
    if tensor.name in statistics:  # a source may not tell buffers from parameters
        return "a running statistic of a BatchNorm layer, not a parameter"
    if not tensor.dtype.startswith("float"):
        return f"its type {tensor.dtype} has no gradient"
    return None if tensor.used else "the model does not read it"
