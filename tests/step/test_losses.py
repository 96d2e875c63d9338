from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from loss_cases import ROWS, WEIGHTS
from onnx.reference import ReferenceEvaluator

from onnxft.errors import ModelError
from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import BATCH, Loss
from onnxft.step.loss_options import describe_loss
from onnxft.step.losses import label_type, loss_builder


def loss_graph(
    kind: str,
    shape: tuple[int | str, ...],
    dtype: str,
    suggested: Loss | None = None,
    options: dict[str, Any] | None = None,
) -> bytes:
    """output, labels, weights -> loss sum, weight sum, gradient of the loss sum, metrics."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="loss")
    op = builder(graph)
    output = add_input(op, "output", ir.DataType.from_numpy(np.dtype(dtype)), [BATCH, *shape])
    loss = describe_loss(kind, output, suggested, options)
    typed = label_type(loss, output)
    assert typed is not None
    labels = add_input(op, "labels", *typed)
    weights = add_input(op, "weights", ir.DataType.FLOAT, [BATCH])
    terms = loss_builder(kind)(op, loss, output, labels, weights)
    gradient = backward(op, terms.loss_sum, [output])[output]
    graph.outputs.extend([terms.loss_sum, terms.weight_sum, gradient, *terms.metrics.values()])
    return bytes(ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString())


def run(model: bytes, feeds: dict[str, np.ndarray], dtype: str) -> list[np.ndarray]:
    if dtype == "float64":
        return list(ReferenceEvaluator(model).run(None, feeds))
    return list(ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5)])
def test_cross_entropy_equals_torch(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (ROWS, *shape)).astype(dtype)
    logits[0, 0] += 80  # softmax of the plain formula would overflow in float32
    labels = rng.integers(0, shape[0], (ROWS, *shape[1:]))
    loss, weight, gradient, correct = run(
        loss_graph("cross_entropy", shape, dtype), {"output": logits, "labels": labels, "weights": WEIGHTS}, dtype
    )

    x = torch.tensor(logits, requires_grad=True)
    each = torch.nn.functional.cross_entropy(x, torch.tensor(labels), reduction="none")
    rows = torch.tensor(WEIGHTS.astype(dtype)).reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
    (rows * each).sum().backward()
    tolerance = {"float32": 2e-6, "float64": 1e-12}[dtype]
    assert loss.dtype == np.dtype(dtype)
    np.testing.assert_allclose(loss, float((rows * each).sum().detach()), rtol=tolerance)
    np.testing.assert_allclose(weight, float(rows.sum()), rtol=tolerance)
    np.testing.assert_allclose(correct, float((rows * (x.argmax(1) == torch.tensor(labels))).sum()), rtol=tolerance)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tokens", [5, "sequence"])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_cross_entropy_of_tokens_equals_torch(shift: int, tokens: int | str, dtype: str) -> None:
    """Classes last, ignored labels in neither sum, and labels ahead by `shift`: as in transformers."""
    rng = np.random.default_rng(9)
    logits = rng.normal(0, 3, (ROWS, 5, 4)).astype(dtype)
    labels = rng.integers(0, 4, (ROWS, 5))
    labels[1, 2:], labels[4, 0], labels[5] = -100, -100, -100
    suggested = Loss("cross_entropy", "output", class_axis=2, ignore_index=-100, shift=shift)
    model = loss_graph("cross_entropy", (tokens, 4), dtype, suggested)
    feeds = {"output": logits, "labels": labels, "weights": WEIGHTS}
    loss, weight, gradient, correct = run(model, feeds, dtype)

    x = torch.tensor(logits, requires_grad=True)
    ahead, read = torch.tensor(labels)[:, shift:], x[:, : 5 - shift]
    each = torch.nn.functional.cross_entropy(read.transpose(1, 2), ahead, reduction="none")
    counted = torch.tensor(WEIGHTS.astype(dtype))[:, None] * (ahead != -100)
    (counted * each).sum().backward()
    tolerance = {"float32": 2e-6, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(loss, float((counted * each).sum().detach()), rtol=tolerance)
    np.testing.assert_allclose(weight, float(counted.sum()), rtol=tolerance)
    np.testing.assert_allclose(correct, float((counted * (read.argmax(2) == ahead)).sum()), rtol=tolerance)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=0, atol=tolerance)


def test_what_was_suggested_for_another_output_does_not_hold() -> None:
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}))
    output = add_input(op, "scores", ir.DataType.FLOAT, [BATCH, 4])
    suggested = Loss("cross_entropy", "logits", class_axis=2, ignore_index=-100)
    assert describe_loss("cross_entropy", output, suggested) == Loss("cross_entropy", "scores", 4)


def test_a_masked_logit_of_minus_infinity_costs_nothing() -> None:
    logits = np.random.default_rng(8).standard_normal((ROWS, 4)).astype(np.float32)
    logits[:, 2] = -np.inf
    labels = np.array([0, 1, 3, 3, 1, 0])
    model = loss_graph("cross_entropy", (4,), "float32")
    loss, _, gradient, _ = run(model, {"output": logits, "labels": labels, "weights": WEIGHTS}, "float32")
    x = torch.tensor(logits, requires_grad=True)
    each = torch.nn.functional.cross_entropy(x, torch.tensor(labels), reduction="none")
    (torch.tensor(WEIGHTS) * each).sum().backward()
    np.testing.assert_allclose(loss, float((torch.tensor(WEIGHTS) * each).sum().detach()), rtol=2e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 3)])
def test_mse_equals_torch(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(6)
    output, labels = (rng.standard_normal((ROWS, *shape)).astype(dtype) for _ in range(2))
    loss, weight, gradient = run(
        loss_graph("mse", shape, dtype), {"output": output, "labels": labels, "weights": WEIGHTS}, dtype
    )
    x = torch.tensor(output, requires_grad=True)
    each = torch.nn.functional.mse_loss(x, torch.tensor(labels), reduction="none")
    rows = torch.tensor(WEIGHTS.astype(dtype)).reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
    (rows * each).sum().backward()
    tolerance = {"float32": 2e-6, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(loss, float((rows * each).sum().detach()), rtol=tolerance)
    np.testing.assert_allclose(weight, float(rows.sum()), rtol=tolerance)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=0, atol=tolerance * 10)


def test_equal_weights_give_torchs_mean() -> None:
    """The sums divided by each other are what torch calls reduction="mean", over all positions."""
    rng = np.random.default_rng(7)
    logits, labels = rng.standard_normal((ROWS, 4, 3)).astype(np.float32), rng.integers(0, 4, (ROWS, 3))
    feeds = {"output": logits, "labels": labels, "weights": np.ones(ROWS, np.float32)}
    loss, weight, *_ = run(loss_graph("cross_entropy", (4, 3), "float32"), feeds, "float32")
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert weight == ROWS * 3
    assert loss / weight == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        ("cross_entropi", (4,), "unknown loss 'cross_entropi'. Did you mean 'cross_entropy'?"),
        (
            "kl_div",
            (),
            "KL divergence reads logits of shape (batch, classes, ...); the output 'output' has",
        ),
        (
            "bce_with_logits",
            ("labels",),
            "labels along axis 1; the output 'output' has the shape ['batch', 'labels']",
        ),
        (
            "model",
            (3,),
            "for each row, (batch,), or one for the batch, (); 'output' has the shape ['batch', 3]",
        ),
        ("cross_entropy", (), "the output 'output' has ['batch']. Choose another output (--loss-output) or --loss mse"),
        ("cross_entropy", ("classes",), "['batch', 'classes']"),
    ],
)
def test_a_loss_that_does_not_fit_is_an_error(kind: str, shape: tuple[int | str, ...], words: str) -> None:
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}))
    with pytest.raises(ModelError) as err:
        describe_loss(kind, add_input(op, "output", ir.DataType.FLOAT, [BATCH, *shape]))
    assert words in str(err.value)
