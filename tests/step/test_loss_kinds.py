"""Every loss and option against torch: sums, gradients through our own rules, and the mean over equal weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_losses import ROWS, WEIGHTS, loss_graph, run
from torch.nn import functional as F  # noqa: N812 - the name that every reader of PyTorch code knows

from onnxft.errors import ConfigError, ModelError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import OPSET
from onnxft.manifest import BATCH, Loss
from onnxft.step.loss_options import check_loss, describe_loss

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
TOLERANCE = {"float32": 3e-6, "float64": 1e-12}


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_equals_torch(case: Case, dtype: str) -> None:
    output, labels = draw(case, dtype)
    model = loss_graph(case.kind, case.shape, dtype, case.suggested, case.options)
    loss, weight, gradient, *_ = run(model, {"output": output, "labels": labels, "weights": WEIGHTS}, dtype)

    x, y = torch.tensor(output, requires_grad=True), torch.tensor(labels)
    each = case.reference(x, y, "none")
    rows = torch.tensor(WEIGHTS.astype(dtype)).reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
    total = (rows * each).sum()
    total.backward()
    tolerance = TOLERANCE[dtype]
    assert loss.dtype == np.dtype(dtype)
    np.testing.assert_allclose(loss, float(total.detach()), rtol=tolerance)
    np.testing.assert_allclose(weight, float((rows * counted(case, y, each)).sum()), rtol=tolerance)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equal_weights_give_torchs_mean(case: Case) -> None:
    output, labels = draw(case, "float64")
    model = loss_graph(case.kind, case.shape, "float64", case.suggested, case.options)
    feeds = {"output": output, "labels": labels, "weights": np.ones(ROWS, np.float32)}
    loss, weight, *_ = run(model, feeds, "float64")
    expected = float(case.reference(torch.tensor(output), torch.tensor(labels), "mean"))
    assert loss / weight == pytest.approx(expected, rel=1e-12)


def test_kl_of_a_batch_is_torchs_batchmean() -> None:
    output, labels = draw(CASES[-3], "float64")
    feeds = {"output": output, "labels": labels, "weights": np.ones(ROWS, np.float32)}
    loss, weight, *_ = run(loss_graph("kl_div", (4,), "float64"), feeds, "float64")
    expected = F.kl_div(F.log_softmax(torch.tensor(output), 1), torch.tensor(labels), reduction="batchmean")
    assert loss / weight == pytest.approx(float(expected), rel=1e-12)


def test_kl_of_a_masked_class_is_finite() -> None:
    output, labels = draw(CASES[-3], "float32")
    output[:, 2], labels[:, 2] = -np.inf, 0
    feeds = {"output": output, "labels": labels, "weights": WEIGHTS}
    loss, _, gradient, *_ = run(loss_graph("kl_div", (4,), "float32"), feeds, "float32")
    rest = {**feeds, "output": np.delete(output, 2, 1), "labels": np.delete(labels, 2, 1)}
    expected, _, smaller, *_ = run(loss_graph("kl_div", (3,), "float32"), rest, "float32")
    assert loss == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(np.delete(gradient, 2, 1), smaller, rtol=1e-6)
    assert (gradient[:, 2] == 0).all()


BAD: list[tuple[str | None, dict[str, Any], str]] = [
    ("cross_entropy", {"label_smoothing": 1.0}, "'label_smoothing' is 1.0; it must be a number, at least 0"),
    ("cross_entropy", {"label_smoothing": -0.1}, "'label_smoothing' is -0.1"),
    ("cross_entropy", {"label_smoothing": float("nan")}, "'label_smoothing' is nan"),
    ("cross_entropy", {"label_smoothing": "much"}, "'label_smoothing' is 'much'"),
    ("cross_entropy", {"label_smooting": 0.1}, "loss 'cross_entropy' has no option 'label_smooting'. Did you mean"),
    ("cross_entropy", {"class_weights": (1, -1)}, "'class_weights' has -1.0 at place 1; it must be finite numbers"),
    ("cross_entropy", {"class_weights": (float("inf"), 1)}, "'class_weights' has inf at place 0"),
    ("cross_entropy", {"class_weights": (0, 0)}, "one of the weights must be above 0"),
    ("cross_entropy", {"class_weights": "ab"}, "'class_weights' is 'ab'"),
    ("cross_entropy", {"class_weights": (1, 2, 3)}, "has 3 numbers, the model has 5 classes: give one for each."),
    ("cross_entropy", {"ignore_index": 0.5}, "'ignore_index' is 0.5; it must be a whole number"),
    ("cross_entropy", {"shift": -1}, "'shift' is -1"),
    ("cross_entropy", {"shift": 1, "class_axis": 1}, "'class_axis' must be 2"),
    ("cross_entropy", {"class_axis": 0}, "'class_axis' is 0; it must be a whole number, at least 1"),
    ("cross_entropy", {"pos_weight": 2}, "loss 'cross_entropy' has no option 'pos_weight'"),
    ("bce_with_logits", {"pos_weight": (1, 2)}, "has 2 numbers, the model has 5 classes: give one for each, or one"),
    ("bce_with_logits", {"label_smoothing": 0.1}, "loss 'bce_with_logits' has no option 'label_smoothing'"),
    ("huber", {"delta": 0}, "'delta' is 0; it must be a finite number above 0"),
    ("huber", {"delta": float("inf")}, "'delta' is inf"),
    ("huber", {"delta": True}, "'delta' is True"),
    ("mse", {"delta": 1.0}, "loss 'mse' has no option 'delta'. It has none."),
    ("model", {"label_smoothing": 0.1}, "loss 'model' has no option 'label_smoothing'. It has none."),
    (None, {"reduction": 1}, "no loss has an option 'reduction'"),
    (None, {"delta": -1}, "'delta' is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "words"), BAD)
def test_a_bad_option_is_found_without_the_model(kind: str | None, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as err:
        check_loss(kind, options, 5)
    assert words in str(err.value)


@pytest.mark.parametrize(("kind", "option"), [("cross_entropy", "class_weights"), ("bce_with_logits", "pos_weight")])
def test_a_count_that_does_not_fit_the_output_is_an_error(kind: str, option: str) -> None:
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}))
    with pytest.raises(ConfigError, match="has 3 numbers, the model has 4 classes"):
        describe_loss(kind, add_input(op, "y", ir.DataType.FLOAT, [BATCH, 4]), options={option: (1, 2, 3)})


@pytest.mark.parametrize(
    ("shape", "dtype"), [((), ir.DataType.INT64), ((1,), ir.DataType.FLOAT), ((BATCH, 1), ir.DataType.FLOAT)]
)
def test_what_is_no_loss_of_the_model_is_an_error(shape: tuple[Any, ...], dtype: ir.DataType) -> None:
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}))
    with pytest.raises(ModelError, match="one number for each row"):
        describe_loss("model", add_input(op, "y", dtype, shape))
