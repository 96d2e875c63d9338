"""The engine of the ort-training generator against torch, in both forms of artifact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ort_training_models import CASES, STEPS

from onnxft.errors import DataError
from onnxft.runtime.engine import Hyper
from onnxft.runtime.ort_training.engine import OrtTrainingEngine
from onnxft.runtime.session import TrainSession

MakeEngine = Callable[..., OrtTrainingEngine]
BatchOf = Callable[[str, int], dict[str, np.ndarray]]
Reference = Callable[[str], dict[str, np.ndarray]]
OrtArtifact = Callable[..., Path]

NAMES = ["mlp_sgd", "mlp_adamw", "mlp_mse", "mlp_decay", "convnet_sgd", "convnet_adamw", "convnet_affine", "layer_norm"]
TOLERANCE = 1e-3


@pytest.fixture
def mlp(make_engine: MakeEngine) -> OrtTrainingEngine:
    return make_engine("mlp_adamw")


def hyper_of(engine: OrtTrainingEngine, rate: float, /, **changes: object) -> Hyper:
    return dataclasses.replace(
        Hyper({"default": rate}, {"default": engine.manifest.optimizer.weight_decay}, step=1), **changes
    )


def mean_loss(engine: OrtTrainingEngine, batch: dict[str, np.ndarray]) -> float:
    result = engine.evaluate(batch)
    return result.loss_sum / result.weight_sum


def softmax_gradients(
    parameters: dict[str, np.ndarray], x: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, np.ndarray], float]:
    """Gradients and value of the sum of cross entropies of a two-layer perceptron, in float64."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    a = x @ p["0.weight"].T + p["0.bias"]
    h = np.maximum(a, 0)
    z = h @ p["2.weight"].T + p["2.bias"]
    z -= z.max(axis=1, keepdims=True)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).sum()
    dz = probabilities - np.eye(z.shape[1])[labels]
    da = dz @ p["2.weight"] * (a > 0)
    return {"0.weight": da.T @ x, "0.bias": da.sum(0), "2.weight": dz.T @ h, "2.bias": dz.sum(0)}, loss


# ----- numbers -----


@pytest.mark.parametrize("case", NAMES)
def test_twenty_steps_equal_torch(case: str, make_engine: MakeEngine, batch_of: BatchOf, reference: Reference) -> None:
    engine = make_engine(case)
    losses = []
    for step in range(STEPS):
        hyper = hyper_of(engine, CASES[case].lr, step=step + 1)
        loss, weight, metrics = engine.step(batch_of(case, step), hyper).read()
        losses.append(loss / weight)
        assert weight == batch_of(case, step)["labels"].size
        assert list(metrics) == ([] if case == "mlp_mse" else ["accuracy"])
        assert all(0 <= value <= weight for value in metrics.values())
    np.testing.assert_allclose(losses, reference(case)["losses"], rtol=TOLERANCE)
    for name, value in engine.parameters().items():
        np.testing.assert_allclose(value, reference(case)[f"final/{name}"], rtol=TOLERANCE, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("case", NAMES)
def test_first_gradients_equal_torch(
    case: str, make_engine: MakeEngine, batch_of: BatchOf, reference: Reference
) -> None:
    engine = make_engine(case)
    found, weight = engine.gradients(batch_of(case, 0))
    assert set(found) == {p.name for p in engine.manifest.parameters}
    for name, value in found.items():
        np.testing.assert_allclose(value / weight, reference(case)[f"gradient/{name}"], rtol=1e-4, atol=1e-6)
    engine.close()


def test_gradients_equal_the_formula(mlp: OrtTrainingEngine, batch_of: BatchOf) -> None:
    batch = batch_of("mlp_adamw", 3)
    expected, loss = softmax_gradients(mlp.parameters(), batch["x"], batch["labels"])
    found, weight = mlp.gradients(batch)
    assert weight == 6.0
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    assert mlp.evaluate(batch).loss_sum == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_gradients_leave_the_accumulators(before: int, make_engine: MakeEngine, batch_of: BatchOf) -> None:
    plain, looked_at = make_engine("mlp_adamw"), make_engine("mlp_adamw")
    for engine in (plain, looked_at):
        for step in range(before):
            engine.accumulate(batch_of("mlp_adamw", step))
    found, _ = looked_at.gradients(batch_of("mlp_adamw", 9))
    alone, _ = make_engine("mlp_adamw").gradients(batch_of("mlp_adamw", 9))
    for engine in (plain, looked_at):
        engine.accumulate(batch_of("mlp_adamw", 5))
        engine.update(hyper_of(engine, 0.1), 6.0 * (before + 1))
    for name, value in plain.parameters().items():
        np.testing.assert_array_equal(found[name], alone[name])
        np.testing.assert_array_equal(looked_at.parameters()[name], value)


@pytest.mark.parametrize("case", ["mlp_sgd", "mlp_mse", "mlp_decay"])
def test_update_takes_the_mean_of_what_was_accumulated(case: str, make_engine: MakeEngine, batch_of: BatchOf) -> None:
    # mlp_decay has an eps that makes AdamW depend on the size of the gradient.
    engine, once = make_engine(case), make_engine(case, batch_size=18)
    batches = [batch_of(case, step) for step in range(3)]
    weight = sum(engine.accumulate(batch).read()[1] for batch in batches)
    engine.update(hyper_of(engine, 0.1), weight)
    once.step({name: np.concatenate([b[name] for b in batches]) for name in batches[0]}, hyper_of(once, 0.1))
    start = make_engine(case).parameters()
    for name, value in engine.parameters().items():
        np.testing.assert_allclose(value - start[name], once.parameters()[name] - start[name], rtol=1e-4, atol=1e-6)
    # The accumulators are empty: the next step is that of an engine that never accumulated.
    for other in (engine, once):
        other.set_parameters(start)
        other.set_state({key: np.zeros_like(value) for key, value in other.state().items()})
    engine.step(batches[0], hyper_of(engine, 0.1))
    fresh = make_engine(case)
    fresh.step(batches[0], hyper_of(fresh, 0.1))
    for name, value in fresh.parameters().items():
        np.testing.assert_array_equal(engine.parameters()[name], value)


@pytest.mark.parametrize("case", ["convnet_sgd", "convnet_adamw", "convnet_affine"])
def test_what_is_not_trained_does_not_move(case: str, make_engine: MakeEngine, batch_of: BatchOf) -> None:
    engine = make_engine(case)
    trained = {p.name for p in engine.manifest.parameters}
    _, frozen = engine._call("parameters", trained=False)
    assert not {*frozen} & trained
    before = engine.parameters()
    for step in range(3):
        engine.step(batch_of(case, step), hyper_of(engine, 0.1))
    assert "0.bias" in frozen
    _, after = engine._call("parameters", trained=False)
    for name, value in frozen.items():
        np.testing.assert_array_equal(after[name], value)
    for name, value in engine.parameters().items():
        assert not np.array_equal(value, before[name]), f"'{name}' did not move"


@pytest.mark.parametrize("case", ["convnet_sgd", "convnet_affine"])
def test_normalisation_stays_frozen(case: str, make_engine: MakeEngine, batch_of: BatchOf) -> None:
    # On batch statistics the loss of one row would depend on the other rows.
    engine, batch = make_engine(case), batch_of(case, 0)
    for step in range(5):
        engine.step(batch_of(case, step), hyper_of(engine, 0.01))
    training_loss = engine.accumulate(batch).read()[0]
    rows = [engine.evaluate({n: a[i : i + 1] for n, a in batch.items()}).loss_sum for i in range(6)]
    assert training_loss == pytest.approx(sum(rows), rel=1e-5)


@pytest.mark.parametrize("form", ["standalone"], indirect=True)
def test_dropout_of_its_own_draws_in_training_only(
    make_engine: MakeEngine, batch_of: BatchOf, reference: Reference
) -> None:
    engine, batch = make_engine("dropout"), batch_of("dropout", 0)
    training = {engine.accumulate(batch).read()[0] for _ in range(5)}
    assert len(training) > 1, "the same mask five times"
    assert len({mean_loss(engine, batch) for _ in range(3)}) == 1
    assert mean_loss(engine, batch) == pytest.approx(float(reference("dropout")["eval"]), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 6, 11])
def test_evaluate_takes_any_number_of_rows(rows: int, mlp: OrtTrainingEngine) -> None:
    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((rows, 5), np.float32), rng.integers(0, 3, rows)
    result = mlp.evaluate({"x": x, "labels": labels, "sample_weights": np.ones(rows, np.float32)})
    assert (set(result.outputs), result.outputs["logits"].shape) == ({"logits"}, (rows, 3))
    assert result.weight_sum == rows
    assert result.metrics == {"accuracy": np.sum(result.outputs["logits"].argmax(axis=1) == labels)}
    assert result.loss_sum == pytest.approx(softmax_gradients(mlp.parameters(), x, labels)[1], rel=1e-5)


def test_the_rate_of_every_step_is_the_one_given(make_engine: MakeEngine, batch_of: BatchOf) -> None:
    # The package's own LinearLRScheduler swaps its arguments; here each step has its rate, and 0 stands still.
    engine = make_engine("mlp_sgd")
    for step, lr in enumerate([0.0, 0.5, 0.25, 0.0]):
        batch, before = batch_of("mlp_sgd", step), engine.parameters()
        gradients, weight = engine.gradients(batch)
        engine.step(batch, hyper_of(engine, lr))
        for name, value in engine.parameters().items():
            np.testing.assert_allclose(value, before[name] - lr * gradients[name] / weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("max_value", "max_norm"), [(math.inf, 0.05), (0.02, math.inf), (0.03, 0.04), (9.0, 9.0)])
def test_gradients_are_clipped_by_value_then_by_norm(
    max_value: float, max_norm: float, make_engine: MakeEngine, batch_of: BatchOf
) -> None:
    engine, batches = make_engine("mlp_sgd"), [batch_of("mlp_sgd", step) for step in range(2)]
    before = engine.parameters()
    gradients = [engine.gradients(batch) for batch in batches]
    means = {n: sum(g[n] for g, _ in gradients) / sum(w for _, w in gradients) for n in before}
    clipped = {n: np.clip(g, -max_value, max_value) for n, g in means.items()}
    norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in clipped.values()))
    factor = min(1.0, max_norm / (norm + 1e-6))
    assert (factor < 1) == (max_norm < 1), "the case clips by norm where it says so"
    weight = sum(engine.accumulate(batch).read()[1] for batch in batches)
    engine.update(hyper_of(engine, 1.0, max_value=max_value, max_norm=max_norm), weight)
    for name, value in engine.parameters().items():
        np.testing.assert_allclose(before[name] - value, clipped[name] * factor, rtol=1e-3, atol=1e-6)


def test_batches_of_other_sizes_are_accumulated_in_proportion(make_engine: MakeEngine, batch_of: BatchOf) -> None:
    # A mean over 4 rows and one over 6 make the mean over 10 only where each counts by its rows.
    small, large = make_engine("mlp_decay", batch_size=4), make_engine("mlp_decay", batch_size=10)
    first, second = (batch_of("mlp_decay", step) for step in range(2))
    batch = {name: np.concatenate([first[name], second[name][:4]]) for name in first}
    weight = small.accumulate({n: a[:4] for n, a in batch.items()}).read()[1]
    small.batch_size = 6
    weight += small.accumulate({n: a[4:] for n, a in batch.items()}).read()[1]
    small.update(hyper_of(small, 0.1), weight)
    large.step(batch, hyper_of(large, 0.1))
    assert weight == 10
    for name, value in large.parameters().items():
        np.testing.assert_allclose(small.parameters()[name], value, rtol=1e-5, atol=1e-6)


# ----- parameters and state -----


def test_parameters_are_copies_and_can_be_replaced(mlp: OrtTrainingEngine, batch_of: BatchOf) -> None:
    batch = batch_of("mlp_adamw", 0)
    before = mean_loss(mlp, batch)
    values = mlp.parameters()
    values["2.weight"] *= 2
    assert mean_loss(mlp, batch) == before
    mlp.set_parameters({"2.weight": values["2.weight"]})
    assert mean_loss(mlp, batch) != before
    np.testing.assert_array_equal(mlp.parameters()["2.weight"], values["2.weight"])


@pytest.mark.parametrize("case", ["mlp_sgd", "mlp_adamw", "convnet_adamw"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    case: str, steps: int, make_engine: MakeEngine, batch_of: BatchOf
) -> None:
    first, second = make_engine(case), make_engine(case)
    for step in range(steps):
        first.step(batch_of(case, step), hyper_of(first, 0.05))
    second.set_state(first.state())
    np.testing.assert_array_equal(second.parameters()["0.weight"], make_engine(case).parameters()["0.weight"])
    second.set_parameters(first.parameters())
    for step in range(steps, steps + 3):
        for engine in (first, second):
            engine.step(batch_of(case, step), hyper_of(engine, 0.05))
    for name, value in first.parameters().items():
        np.testing.assert_array_equal(second.parameters()[name], value)
    for key, value in first.state().items():
        np.testing.assert_array_equal(second.state()[key], value)


def test_state_is_that_of_adamw(mlp: OrtTrainingEngine, batch_of: BatchOf) -> None:
    fresh = mlp.state()
    gradients, weight = mlp.gradients(batch_of("mlp_adamw", 0))
    mlp.step(batch_of("mlp_adamw", 0), hyper_of(mlp, 0.1))
    state = mlp.state()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in fresh.items()}
    assert (fresh.pop("step"), state.pop("step")) == (0, 1)
    assert len(state) == 2 * len(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(state[f"{name}/exp_avg"], 0.1 * gradient / weight, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(state[f"{name}/exp_avg_sq"], 0.001 * (gradient / weight) ** 2, rtol=1e-4, atol=1e-9)
        assert not fresh[f"{name}/exp_avg"].any()


def test_session_trains_saves_and_resumes(
    tmp_path: Path, batch_of: BatchOf, reference: Reference, ort_artifact: OrtArtifact
) -> None:
    batches = [batch_of("mlp_adamw", step) for step in range(5)]
    with TrainSession(ort_artifact("mlp_adamw"), threads=1) as first:
        losses = [first.step(batch, lr=0.02).loss for batch in batches[:3]]
        np.testing.assert_allclose(losses, reference("mlp_adamw")["losses"][:3], rtol=TOLERANCE)
        first.save_checkpoint(tmp_path / "checkpoint")
        expected = [first.step(batch, lr=0.02).loss for batch in batches[3:]]
        outputs = first.predict({"x": np.concatenate([b["x"] for b in batches])})
        assert outputs["logits"].shape == (30, 3)
    with TrainSession(ort_artifact("mlp_adamw"), threads=1) as second:
        second.load_checkpoint(tmp_path / "checkpoint")
        assert [second.step(batch, lr=0.02).loss for batch in batches[3:]] == expected


def test_labels_outside_the_classes_never_reach_the_runtime(batch_of: BatchOf, ort_artifact: OrtArtifact) -> None:
    # The package itself would take them and return a plausible loss.
    with TrainSession(ort_artifact("mlp_sgd"), threads=1) as session:
        for label in (-1, 3):
            batch = batch_of("mlp_sgd", 0)
            batch["labels"] = np.array([0, 1, label, 2, 0, 1])
            with pytest.raises(DataError, match=rf"'labels' has the value {label} at row 2; classes are 0 to 2"):
                session.step(batch, lr=0.1)
