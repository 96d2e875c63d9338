"""The manifest's record of a loss: its options checked, and fitted to the output that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, cast

import onnx_ir as ir

from onnxft.errors import ConfigError, ModelError, near
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH, Loss, LossKind
from onnxft.step.losses import loss_builder

IGNORED = -100
"""The label that does not count where labels are shifted and none is named, as torch has it."""

_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("class_weights", "label_smoothing", "ignore_index", "shift", "class_axis"),
    "bce_with_logits": ("pos_weight", "class_axis"),
    "kl_div": ("class_axis",),
    "huber": ("delta",),
}
_NUMBERS: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "label_smoothing": (Real, "a number, at least 0 and below 1", lambda x: 0 <= x < 1),
    "delta": (Real, "a finite number above 0", lambda x: 0 < x < math.inf),
    "ignore_index": (Integral, "a whole number", lambda x: True),
    "shift": (Integral, "a whole number, at least 0", lambda x: x >= 0),
    "class_axis": (Integral, "a whole number, at least 1", lambda x: x >= 1),
}


def check_loss(kind: str | None, options: Mapping[str, Any], num_classes: int | None = None) -> dict[str, Any]:
    """The options of a loss in the types of the manifest; all that can be checked without the model.

    Args:
        kind: the loss; None where the source is to suggest one.
        options: {name: number, or numbers for `class_weights` and `pos_weight`}.
        num_classes: how many classes the model has, if that is known.

    Raises:
        ModelError: the loss is unknown.
        ConfigError: the loss has no such option, or a value is out of range.
    """
    if kind is not None:
        loss_builder(kind)
    known = _OPTIONS.get(kind, ()) if kind is not None else [name for names in _OPTIONS.values() for name in names]
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            which = f"loss '{kind}' has no option '{name}'" if kind else f"no loss has an option '{name}'"
            raise ConfigError(f"{which}.{near(name, dict.fromkeys(known)) if known else ' It has none.'}")
        checked[name] = _weights(name, value) if name in ("class_weights", "pos_weight") else _number(name, value)
    if checked.get("shift"):
        checked = {"class_axis": 2, "ignore_index": IGNORED, **checked}
        if checked["class_axis"] != 2:
            raise ConfigError("the loss option 'shift' moves labels along axis 1, so 'class_axis' must be 2.")
    if num_classes is not None:
        _check_counts(checked, num_classes)
    return checked


def _number(name: str, value: Any) -> float:
    kind, rule, holds = _NUMBERS[name]
    if isinstance(value, float) and kind is Integral and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool) or not holds(value):
        raise ConfigError(f"the loss option '{name}' is {value!r}; it must be {rule}.")
    return int(cast(int, value)) if kind is Integral else float(cast(float, value))


def _weights(name: str, value: Any) -> tuple[float, ...]:
    rule = "finite numbers that are not negative"
    try:
        weights = (float(value),) if isinstance(value, Real) else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        raise ConfigError(f"the loss option '{name}' is {value!r}; it must be {rule}.") from None
    for place, weight in enumerate(weights):
        if not 0 <= weight < math.inf:
            raise ConfigError(f"the loss option '{name}' has {weight} at place {place}; it must be {rule}.")
    if not any(weights):
        raise ConfigError(f"the loss option '{name}' is {value!r}; one of the weights must be above 0.")
    return weights


def _check_counts(options: Mapping[str, Any], num_classes: int | None) -> None:
    for name, one_for_all in (("class_weights", False), ("pos_weight", True)):
        count = len(options.get(name, ()))
        if count and count != num_classes and not (one_for_all and count == 1):
            raise ConfigError(
                f"the loss option '{name}' has {count} numbers, the model has {num_classes} classes"
                f"{': give one for each, or one for all' if one_for_all else ': give one for each'}."
            )


def describe_loss(
    kind: str,
    output: ir.Value,
    suggested: Loss | None = None,
    options: Mapping[str, Any] | None = None,
    inputs: tuple[str, ...] = (),
) -> Loss:
    """The manifest's record of a loss on `output`.

    Args:
        kind: the loss.
        output: the model output that it reads.
        suggested: by the source; holds where it is of the same kind for the same output, but for the options.
        options: as in `check_loss`.
        inputs: model inputs that only the loss needs.

    Raises:
        ModelError: the loss is unknown, or cannot read the output.
        ConfigError: an option is unknown, out of range, or does not fit the output.
    """
    given = check_loss(kind, options or {})
    name, shape = str(output.name), dims(output)
    if kind == "model":
        return _of_the_model(output, inputs)
    if len(shape) == 0 or shape[0] != BATCH:
        raise ModelError(
            f"a loss reads one row of its output for each row of the batch; '{output.name}' has the shape "
            f"{list(shape)}. Choose another output (--loss-output), or --loss model if it is the loss itself."
        )
    same = suggested is not None and (suggested.kind, suggested.output) == (kind, name)
    loss = replace(suggested if same and suggested is not None else Loss(cast(LossKind, kind), name), **given)
    if kind == "bce_with_logits":
        loss = _binary(loss, output)
    elif kind in ("cross_entropy", "kl_div"):
        loss = _classified(loss, output)
    _check_counts(given, loss.num_classes)
    return loss


def _of_the_model(output: ir.Value, inputs: tuple[str, ...]) -> Loss:
    shape = dims(output)
    if shape not in ((), (BATCH,)) or output.dtype is None or not output.dtype.is_floating_point():
        raise ModelError(
            f"a loss that the model computes is one number for each row, (batch,), or one for the batch, (); "
            f"'{output.name}' has the shape {list(shape)} and type {output.dtype}. "
            "Choose another output (--loss-output)."
        )
    return Loss("model", str(output.name), scalar=shape == (), inputs=inputs)


def _binary(loss: Loss, output: ir.Value) -> Loss:
    """Labels along the class axis; without one, or where it has one place, the loss is binary."""
    shape, axis = dims(output), loss.class_axis
    if len(shape) == 1:
        return replace(loss, num_classes=1)
    if axis >= len(shape) or not isinstance(shape[axis], int):
        raise ModelError(
            f"bce_with_logits reads labels along axis {axis}; the output '{output.name}' has the shape {list(shape)}. "
            "Choose another output (--loss-output) or another axis (--loss-option class_axis=N)."
        )
    return replace(loss, num_classes=cast(int, shape[axis]), per_position=len(shape) > 2)


def _classified(loss: Loss, output: ir.Value) -> Loss:
    shape, axis = dims(output), loss.class_axis
    if len(shape) <= axis or not isinstance(num_classes := shape[axis], int):
        wanted = {1: "(batch, classes, ...)", 2: "(batch, tokens, classes)"}.get(
            axis, f"with classes along axis {axis}"
        )
        what = {"cross_entropy": "cross entropy", "kl_div": "the KL divergence"}[loss.kind]
        raise ModelError(
            f"{what} reads logits of shape {wanted}; the output '{output.name}' has {list(shape)}. "
            "Choose another output (--loss-output) or --loss mse, or export the model with a head that gives logits."
        )
    return replace(loss, num_classes=num_classes, per_position=len(shape) > 2)


def inputs_of(graph: ir.Graph, output: ir.Value) -> tuple[str, ...]:
    """Inputs of a graph that reach `output` and no other output; () where there is no other."""
    others = [v for v in graph.outputs if v is not output]
    if not others:
        return ()
    read, needed = _behind([output]), _behind(others)
    return tuple(str(v.name) for v in graph.inputs if v in read and v not in needed)


def _behind(values: list[ir.Value]) -> set[ir.Value]:
    """Every value that `values` are computed from, and themselves."""
    found: set[ir.Value] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        node = value.producer()
        if node is None:
            continue
        waiting += [v for v in node.inputs if v is not None]
        for attribute in node.attributes.values():  # a subgraph reads values of the graph around it
            if attribute.type == ir.AttributeType.GRAPH:
                inside = ir.traversal.RecursiveGraphIterator(attribute.as_graph())
                waiting += [v for inner in inside for v in inner.inputs if v is not None]
    return found
