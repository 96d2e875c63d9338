"""Every loss and option against torch: sums, gradients through our own rules, and the mean over equal weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from loss_cases import CASES, ROWS, WEIGHTS, Case, counted, draw
from test_losses import loss_graph, run
from torch.nn import functional as F  # noqa: N812 - the name that every reader of PyTorch code knows

from onnxft.errors import ConfigError, ModelError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import OPSET
from onnxft.manifest import BATCH
from onnxft.step.loss_options import check_loss, describe_loss

TOLERANCE = {"float32": 3e-6, "float64": 1e-12}


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
