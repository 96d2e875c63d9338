"""Every loss in a session: a step, accumulation, weights and padding against torch, and losses of the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft.errors import DataError
from onnxft.manifest import Loss
from onnxft.runtime.session import TrainSession
from onnxft.training.loop import run

torch = pytest.importorskip("torch", reason="torch gives the expected numbers")

from onnxft.api import Plan, export  # noqa: E402
from onnxft.step.loss_options import describe_loss  # noqa: E402
from onnxft.step.optimizers import describe_optimizer  # noqa: E402

F = torch.nn.functional
LR = 0.1
V = (0.5, 2.0, 1.25, 0.75, 0.0)
RNG = np.random.default_rng(8)
X = RNG.standard_normal((16, 7)).astype(np.float32)
CLASSES = RNG.integers(0, 5, 16)
BINARY = RNG.integers(0, 2, (16, 5))
VALUES = RNG.standard_normal((16, 5)).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(5), 16).astype(np.float32)
CASES: dict[str, tuple[str, dict[str, Any], np.ndarray, Callable[..., Any]]] = {
    "weighted classes": (
        "cross_entropy", {"class_weights": V, "label_smoothing": 0.1}, CLASSES,
        lambda x, y, reduction: F.cross_entropy(
            x, y, torch.tensor(V), label_smoothing=0.1, reduction=reduction
        ),
    ),
    "labels": (
        "bce_with_logits", {"pos_weight": (1, 2, 3, 4, 5)}, BINARY,
        lambda x, y, reduction: F.binary_cross_entropy_with_logits(
            x, y.float(), pos_weight=torch.arange(1.0, 6.0), reduction=reduction
        ),
    ),
    "l1": ("l1", {}, VALUES, lambda x, y, reduction: F.l1_loss(x, y, reduction=reduction)),
    "huber": (
        "huber", {"delta": 0.3}, VALUES,
        lambda x, y, reduction: F.huber_loss(x, y, delta=0.3, reduction=reduction),
    ),
    "probabilities": (
        "kl_div", {}, PROBABILITIES,
        lambda x, y, reduction: F.kl_div(
            F.log_softmax(x, 1), y, reduction="none" if reduction == "none" else "batchmean"
        ),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, planned: Any, tmp_path: Path) -> tuple[Path, np.ndarray, Callable[..., Any]]:
    """An artifact of MLP with the loss and plain SGD, labels, and torch's loss."""
    kind, options, labels, reference = CASES[request.param]
    made = planned("mlp")
    (output,) = made.forward.infer.graph.outputs
    loss = describe_loss(kind, output, options=options)
    Plan(made.forward, made.selection, loss, describe_optimizer("sgd")).write(tmp_path / "a", batch_size=16)
    return tmp_path / "a", labels, reference


def torch_step(loss: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """Parameters of MLP after one SGD step on loss(module)."""
    import models

    module, _ = models.mlp()
    module.eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    loss(module).backward()
    optimizer.step()
    return {n: p.detach().numpy() for n, p in module.named_parameters()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_step_equals_torch(case: Any) -> None:
    directory, labels, reference = case
    x, y = torch.tensor(X), torch.tensor(labels)
    expected = torch_step(lambda module: reference(module(x), y, "mean"))
    with TrainSession(directory, threads=1) as session:
        before = session.evaluate({"x": X, "labels": labels}).loss
        assert session.step({"x": X, "labels": labels}, lr=LR).loss == pytest.approx(before, rel=1e-5)
        assert_equal(session.parameters, expected)


def test_four_batches_of_four_are_one_of_sixteen(case: Any) -> None:
    directory, labels, reference = case
    x, y = torch.tensor(X), torch.tensor(labels)
    expected = torch_step(lambda module: reference(module(x), y, "mean"))
    with TrainSession(directory, threads=1, batch_size=4) as session:
        for i in range(0, 16, 4):
            session.accumulate({"x": X[i : i + 4], "labels": labels[i : i + 4]})
        session.update(lr=LR)
        assert_equal(session.parameters, expected)


def test_weights_and_padding_are_exact(case: Any) -> None:
    """11 rows with weights, in a session of 16."""
    directory, labels, reference = case
    x, y, w = torch.tensor(X[:11]), torch.tensor(labels[:11]), torch.linspace(0, 2, 11)

    def loss(module: Any) -> Any:
        each = reference(module(x), y, "none")
        rows = w.reshape(-1, *[1] * (each.ndim - 1)).expand_as(each)
        weight = rows
        if reference is CASES["weighted classes"][3]:
            weight = rows * torch.tensor(V)[y]
        if reference is CASES["probabilities"][3]:
            weight = w
        return (rows * each).sum() / weight.sum()

    batch = {"x": X[:11], "labels": labels[:11], "sample_weights": w.numpy()}
    with TrainSession(directory, threads=1) as session:
        value = session.step(batch, lr=LR).loss
        assert_equal(session.parameters, torch_step(loss))
    import models

    assert value == pytest.approx(float(loss(models.mlp()[0].eval()).detach()), rel=1e-5)


def test_no_label_that_counts_is_an_error(planned: Any, tmp_path: Path) -> None:
    made = planned("mlp")
    (output,) = made.forward.infer.graph.outputs
    loss = describe_loss("cross_entropy", output, options={"class_weights": V, "ignore_index": -100})
    Plan(made.forward, made.selection, loss, describe_optimizer("sgd")).write(tmp_path / "a", batch_size=4)
    with TrainSession(tmp_path / "a", threads=1) as session:
        before = session.parameters
        with pytest.raises(DataError, match="each label of the batch is -100, which does not count or belongs to a cl"):
            session.step({"x": X[:4], "labels": np.array([-100, 4, 4, -100])}, lr=LR)
        assert_equal(session.parameters, before)
        session.step({"x": X[:4], "labels": np.array([-100, 4, 1, -100])}, lr=LR)
        assert all(np.isfinite(v).all() for v in session.parameters.values())


# ----- a loss of the model's own -----


class Own(torch.nn.Module):
    """(loss, scores), the loss of each row or their mean; targets are called as the training graph calls labels."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc = torch.nn.Linear(7, 5)
        self.mean = mean

    def forward(self, x: Any, labels: Any) -> tuple[Any, Any]:
        scores = self.fc(x)
        each = F.cross_entropy(scores, labels, reduction="none")
        return (each.mean() if self.mean else each), scores


@pytest.fixture(scope="module", params=[False, True], ids=["each row", "the mean"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path]:
    directory = tmp_path_factory.mktemp("artifacts") / "own"
    inputs = (torch.tensor(X[:3]), torch.tensor(CLASSES[:3]))
    made = export(
        Own(request.param), inputs, directory, loss="model", output_names=["loss", "scores"], optimizer="sgd",
        batch_size=8,
    )  # fmt: skip
    return request.param, made


def own_step(mean: bool, rows: int, weights: Any = None) -> tuple[float, dict[str, np.ndarray]]:
    module = Own(mean=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    each = module(torch.tensor(X[:rows]), torch.tensor(CLASSES[:rows]))[0]
    w = torch.ones(rows) if weights is None else torch.tensor(weights)
    loss = (each * w).sum() / w.sum()
    loss.backward()
    optimizer.step()
    return float(loss.detach()), {n: p.detach().numpy() for n, p in module.named_parameters()}


def batch(rows: int) -> dict[str, np.ndarray]:
    return {"x": X[:rows], "labels_input": CLASSES[:rows]}


def test_the_models_own_loss_is_trained(own: tuple[bool, Path]) -> None:
    mean, directory = own
    expected, parameters = own_step(mean, 8)
    with TrainSession(directory, threads=1) as session:
        assert session.manifest.loss == Loss("model", "loss", scalar=mean, inputs=("labels_input",))
        assert session.step(batch(8), lr=LR).loss == pytest.approx(expected, rel=1e-6)
        assert_equal(session.parameters, parameters)


def test_the_models_own_loss_is_accumulated(own: tuple[bool, Path]) -> None:
    mean, directory = own
    with TrainSession(directory, threads=1, batch_size=4) as session:
        for i in range(0, 16, 4):
            session.accumulate({name: a[i : i + 4] for name, a in batch(16).items()})
        session.update(lr=LR)
        assert_equal(session.parameters, own_step(mean, 16)[1])


def test_rows_are_weighted_where_each_has_a_loss(own: tuple[bool, Path]) -> None:
    mean, directory = own
    weights = np.linspace(0, 1, 5, dtype=np.float32)
    with TrainSession(directory, threads=1) as session:
        weighted = {**batch(5), "sample_weights": weights}
        if mean:
            for refused in (batch(5), {**batch(8), "sample_weights": np.arange(8.0)}):
                with pytest.raises(
                    DataError, match="computes the loss 'loss' itself, as one number for the whole batch"
                ):
                    session.step(refused, lr=LR)
            with pytest.raises(DataError, match="'sample_weights' are not all 1, but the model computes the loss"):
                session.evaluate(weighted)
        else:
            assert session.step(weighted, lr=LR).loss == pytest.approx(own_step(mean, 5, weights)[0], rel=1e-6)
            assert_equal(session.parameters, own_step(mean, 5, weights)[1])


@pytest.mark.parametrize("rows", [1, 5, 8, 11, 16])
def test_an_evaluation_is_exact_for_any_rows(own: tuple[bool, Path], rows: int) -> None:
    mean, directory = own
    with TrainSession(directory, threads=1) as session:
        found = session.evaluate(batch(rows))
        assert found.loss == pytest.approx(own_step(mean, rows)[0], rel=1e-6)
        assert {n: a.shape for n, a in found.outputs.items()} == (
            {"scores": (rows, 5)} if mean else {"loss": (rows,), "scores": (rows, 5)}
        )


def test_a_prediction_needs_no_targets(own: tuple[bool, Path]) -> None:
    _, directory = own
    with TrainSession(directory, threads=1) as session:
        outputs = session.predict({"x": X[:11]})
        assert list(outputs) == ["scores"]  # and gives no loss of targets that are not there
        np.testing.assert_array_equal(outputs["scores"], session.evaluate(batch(11)).outputs["scores"])
        assert session.predict(batch(11)).keys() == session.evaluate(batch(11)).outputs.keys()


def test_the_loop_trains_the_models_own_loss(own: tuple[bool, Path], tmp_path: Path) -> None:
    mean, directory = own
    starts = []
    done = run(
        directory, batch(11), {"epochs": 3, "lr": 0.5, "threads": 1}, run_dir=tmp_path / "run", announce=starts.append
    )
    assert starts[0].rows_left_out == (3 if mean else 0)
    assert list(done.after) == ["loss"] and done.metric == "loss"
    assert done.before["loss"] == pytest.approx(own_step(mean, 11)[0], rel=1e-6)
    assert done.after["loss"] < done.before["loss"]
