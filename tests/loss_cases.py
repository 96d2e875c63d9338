"""Every loss and option with its counterpart in torch, and arrays on which they are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the name that every reader of PyTorch code knows

from onnxft.manifest import Loss

ROWS = 6
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.5, 0.25], np.float32)
"""Of the rows."""
Tensor = torch.Tensor
Reference = Callable[[Tensor, Tensor, str], Tensor]
"""(output, labels, reduction) -> torch's loss"""


@dataclass(frozen=True)
class Case:
    name: str
    kind: str
    shape: tuple[int, ...]
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    labels: str = "values"
    """How labels are drawn: classes, binary, soft, distribution or values."""
    class_axis: int = 1
    suggested: Loss | None = None


V = (0.5, 2.0, 1.25, 0.75)


def cross_entropy(**options: Any) -> Reference:
    weight = options.pop("weight", None)

    def reference(x: Tensor, y: Tensor, reduction: str) -> Tensor:
        v = None if weight is None else torch.tensor(weight, dtype=x.dtype)
        return F.cross_entropy(x, y, weight=v, reduction=reduction, **options)

    return reference


def tokens(shift: int, **options: Any) -> Reference:
    """Classes last, labels ahead."""
    plain = cross_entropy(**options)
    return lambda x, y, reduction: plain(x[:, : x.shape[1] - shift].transpose(1, 2), y[:, shift:], reduction)


def bce(pos_weight: Any = None) -> Reference:
    def reference(x: Tensor, y: Tensor, reduction: str) -> Tensor:
        p = None if pos_weight is None else torch.tensor(pos_weight, dtype=x.dtype)
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=p, reduction=reduction)

    return reference


def kl(axis: int = 1) -> Reference:
    def reference(x: Tensor, y: Tensor, reduction: str) -> Tensor:
        each = F.kl_div(F.log_softmax(x, axis), y, reduction="none").sum(axis)
        return each if reduction == "none" else each.mean()

    return reference


def plain(function: Any, **options: Any) -> Reference:
    return lambda x, y, reduction: function(x, y, reduction=reduction, **options)


SMOOTH = {"class_weights": V, "label_smoothing": 0.2}
CASES = [
    Case("smoothing", "cross_entropy", (4,), cross_entropy(label_smoothing=0.1), {"label_smoothing": 0.1}, "classes"),
    Case("class weights", "cross_entropy", (4,), cross_entropy(weight=V), {"class_weights": V}, "classes"),
    Case(
        "a class of weight 0", "cross_entropy", (4, 3), cross_entropy(weight=(0.0, 1.0, 2.0, 3.0)),
        {"class_weights": (0, 1, 2, 3)}, "classes",
    ),
    Case("both", "cross_entropy", (4,), cross_entropy(weight=V, label_smoothing=0.2), SMOOTH, "classes"),
    Case("both, pixels", "cross_entropy", (4, 3, 5), cross_entropy(weight=V, label_smoothing=0.2), SMOOTH, "classes"),
    Case(
        "both, ignored", "cross_entropy", (4, 3), cross_entropy(weight=V, label_smoothing=0.2, ignore_index=1),
        {**SMOOTH, "ignore_index": 1}, "classes",
    ),
    Case(
        "both, tokens", "cross_entropy", (5, 4), tokens(0, weight=V, label_smoothing=0.2),
        {**SMOOTH, "class_axis": 2}, "classes", class_axis=2,
    ),
    Case(
        "both, next token", "cross_entropy", (5, 4), tokens(1, weight=V, label_smoothing=0.2, ignore_index=2),
        {**SMOOTH, "shift": 1, "ignore_index": 2}, "classes", class_axis=2,
    ),
    Case(
        "smoothing over a suggestion", "cross_entropy", (5, 4), tokens(2, label_smoothing=0.3, ignore_index=3),
        {"label_smoothing": 0.3}, "classes", 2, Loss("cross_entropy", "output", class_axis=2, ignore_index=3, shift=2),
    ),
    Case("binary", "bce_with_logits", (), bce(), {}, "binary"),
    Case("binary column", "bce_with_logits", (1,), bce([3.0]), {"pos_weight": 3.0}, "binary"),
    Case("binary, weighted", "bce_with_logits", (), bce([0.25]), {"pos_weight": [0.25]}, "binary"),
    Case("labels", "bce_with_logits", (3,), bce(), {}, "binary"),
    Case("soft labels, weighted", "bce_with_logits", (3,), bce([0.5, 4.0, 1.0]), {"pos_weight": (0.5, 4, 1)}, "soft"),
    Case(
        "labels of pixels", "bce_with_logits", (3, 2, 5), bce([[[0.5]], [[4.0]], [[1.0]]]), {"pos_weight": (0.5, 4, 1)},
        "soft",
    ),
    Case(
        "labels of tokens", "bce_with_logits", (2, 3), bce([0.5, 4.0, 1.0]),
        {"pos_weight": (0.5, 4, 1), "class_axis": 2}, "soft",
    ),
    Case("l1", "l1", (), plain(F.l1_loss)),
    Case("l1, columns", "l1", (4, 3), plain(F.l1_loss)),
    Case("mse", "mse", (4, 3), plain(F.mse_loss)),
    Case("huber", "huber", (), plain(F.huber_loss)),
    Case("huber, delta", "huber", (4, 3), plain(F.huber_loss, delta=0.5), {"delta": 0.5}),
    Case("huber, a wide delta", "huber", (4,), plain(F.huber_loss, delta=7.0), {"delta": 7}),
    Case("kl", "kl_div", (4,), kl(), {}, "distribution"),
    Case("kl, pixels", "kl_div", (4, 3, 2), kl(), {}, "distribution"),
    Case("kl, tokens", "kl_div", (3, 4), kl(2), {"class_axis": 2}, "distribution", class_axis=2),
]  # fmt: skip


def draw(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    full = (ROWS, *case.shape)
    x = rng.normal(0, 2, full).astype(dtype)
    match case.labels:
        case "classes":
            return x, rng.integers(0, 4, [n for axis, n in enumerate(full) if axis != case.class_axis])
        case "binary":
            x[0] = 0  # where |x| has no derivative and the loss has one
            x[1], x[2] = 300, -300  # exp(x) would overflow in float32
            return x, rng.integers(0, 2, full).astype(dtype)
        case "soft":
            return x, rng.random(full).astype(dtype)
        case "distribution":
            p = np.maximum(rng.normal(size=full), 0) + 1e-3
            p[0] = 0  # a class for certain, in every position
            np.moveaxis(p, case.class_axis, 0)[1, 0] = 1
            return x, (p / p.sum(axis=case.class_axis, keepdims=True)).astype(dtype)
    labels = rng.normal(0, 2, full).astype(dtype)
    labels[0] = x[0]  # no error at all
    labels[1] = x[1] - case.options.get("delta", 1.0)  # about where Huber's two pieces meet
    return x, labels


def counted(case: Case, y: Tensor, each: Tensor) -> Tensor:
    """What each label weighs besides its row."""
    if case.kind != "cross_entropy":
        return torch.ones_like(each)
    loss = case.suggested or Loss("cross_entropy", "output")
    shift = case.options.get("shift", loss.shift)
    ignored = case.options.get("ignore_index", loss.ignore_index)
    y = y[:, shift:] if shift else y
    v = torch.tensor(case.options.get("class_weights", [1.0] * 4), dtype=each.dtype)[y]
    return v if ignored is None else v * (y != ignored)
