"""Cases of the two losses: reductions, weights, ignored targets, further axes, the output log_prob."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range

SHAPES = [((4, 3), (4,)), ((2, 3, 5), (2, 5)), ((2, 3, 4, 5), (2, 4, 5))]


def targets(shape, classes, ignore=None, dtype=np.int64):
    found = np.random.default_rng(0).integers(0, classes, shape).astype(dtype)
    if ignore is not None:
        found.reshape(-1)[1::3] = ignore
    return found


def loss(log_prob, target, weight, reduction, ignore):
    """By its formula: torch refuses a weight that is differentiated."""
    kept = target != ignore if ignore is not None else torch.ones_like(target, dtype=torch.bool)
    target = torch.where(kept, target, 0).long()
    w = (torch.ones(log_prob.shape[1], dtype=log_prob.dtype) if weight is None else weight)[target] * kept
    y = -w * log_prob.gather(1, target[:, None])[:, 0]
    return {"none": y, "sum": y.sum(), "mean": y.sum() / w.sum()}[reduction]


def case(op, x, target, reduction, weight=False, ignore=None, dtype=np.int64, note="", log_prob=0, read=1, batch=()):
    """`log_prob` outputs, of which the last `read` are read by the loss."""

    def in_torch(x, target, weight=None):
        log_probs = x.log_softmax(1) if op == "SoftmaxCrossEntropyLoss" else x
        y = loss(log_probs, target, weight, reduction, ignore)
        return [y, log_probs][:read] if log_prob else y

    attrs = {"reduction": reduction} | ({} if ignore is None else {"ignore_index": ignore})
    inputs = (x, targets(target, x[1], ignore, dtype), *([Range((x[1],))] if weight else []))
    return Case(op, inputs, in_torch, attrs, note, runtime=(1,), outputs=1 + log_prob, read=read, batch=batch)


CASES = [
    case_
    for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    for case_ in [
        *(
            case(op, x, target, reduction, weight, batch=(0, 1))
            for x, target in SHAPES
            for reduction in ("none", "mean", "sum")
            for weight in (False, True)
        ),
        *(
            case(op, *SHAPES[1], reduction, weight, ignore, batch=(0, 1))
            for reduction in ("none", "mean", "sum")
            for weight in (False, True)
            for ignore in (1, -100)
        ),
        case(op, *SHAPES[2], "mean", True, 255, np.int32, note="int32 targets"),
    ]
] + [
    case("SoftmaxCrossEntropyLoss", *SHAPES[0], "mean", True, log_prob=1, note="log_prob unread", batch=(0, 1)),
    *(
        case("SoftmaxCrossEntropyLoss", x, target, reduction, weight, 2, log_prob=1, read=2, note="log_prob read")
        for x, target in SHAPES[:2]
        for reduction in ("none", "mean", "sum")
        for weight in (False, True)
    ),
]
