"""What a session computes: the ways of making one step agree with each other and with torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from onnxft.errors import ConfigError, DataError
from onnxft.runtime.session import TrainSession

SHAPES = {"mlp": ("x", (7,), 5), "convnet": ("image", (1, 24, 24), 10)}


def batch_of(model: str, rows: int, seed: int = 20) -> dict[str, np.ndarray]:
    name, shape, classes = SHAPES[model]
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((rows, *shape)).astype(np.float32), "labels": rng.integers(0, classes, rows)}


def torch_gradients(model: str, batch: dict[str, np.ndarray], weights: Any = None) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of the weighted mean, in inference behaviour (normalisation is frozen)."""
    module, _ = getattr(models, model)()
    each = torch.nn.functional.cross_entropy(
        module.eval()(torch.tensor(batch[SHAPES[model][0]])), torch.tensor(batch["labels"]), reduction="none"
    )
    rows = torch.ones(len(each)) if weights is None else torch.tensor(weights)
    loss = (rows * each).sum() / rows.sum()
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in module.named_parameters()}


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Largest difference over the largest value, for each array of the two dicts."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-12)
        assert error <= tolerance, f"{name}: {error:.1e}"


OPTIMIZERS = [("adamw", None), ("sgd", 0.9)]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(("optimizer", "momentum"), OPTIMIZERS)
def test_train_equals_gradients_and_update(
    model: str, optimizer: str, momentum: float | None, exported: Callable[..., Path]
) -> None:
    artifact = exported(model, optimizer, momentum=momentum)
    with TrainSession(artifact, threads=1) as fused, TrainSession(artifact, threads=1) as split:
        for seed in range(4):
            batch = batch_of(model, 16, seed)
            one, other = fused.step(batch, lr=1e-2), split.accumulate(batch)
            split.update(lr=1e-2)
            assert one.loss == pytest.approx(other.loss, rel=1e-6)
            assert one.metrics == pytest.approx(other.metrics, rel=1e-6)
        assert fused.step_count == split.step_count == 4
        assert_close(split.parameters, fused.parameters, 1e-6)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(("optimizer", "momentum"), OPTIMIZERS)
def test_4_batches_of_4_equal_one_of_16(
    model: str, optimizer: str, momentum: float | None, exported: Callable[..., Path]
) -> None:
    artifact = exported(model, optimizer, momentum=momentum)
    with TrainSession(artifact, threads=1) as whole, TrainSession(artifact, threads=1, batch_size=4) as parts:
        for seed in range(3):
            batch = batch_of(model, 16, seed)
            one = whole.step(batch, lr=1e-3)
            others = [parts.accumulate({n: v[i : i + 4] for n, v in batch.items()}) for i in range(0, 16, 4)]
            parts.update(lr=1e-3)
            assert one.loss == pytest.approx(np.mean([o.loss for o in others]), rel=1e-6)
        assert_close(parts.parameters, whole.parameters, 1e-6)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("rows", [16, 11, 1])
def test_a_short_batch_gives_the_mean_of_its_real_rows(model: str, rows: int, exported: Callable[..., Path]) -> None:
    batch = batch_of(model, rows)
    loss, expected = torch_gradients(model, batch)
    with TrainSession(exported(model), threads=1) as session:
        assert_close(session.gradients(batch), expected, 1e-5)
        assert session.step(batch, lr=0.0).loss == pytest.approx(loss, rel=1e-5)


class Normalized(torch.nn.Module):
    """Divides each row by its norm: a row of zeros gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x / (x * x).sum(1, keepdim=True).sqrt())


def test_padding_rows_cannot_bring_nan(tmp_path: Path) -> None:
    import onnxft

    torch.manual_seed(21)
    module = Normalized()
    rng = np.random.default_rng(22)
    x, labels = rng.standard_normal((3, 7)).astype(np.float32), rng.integers(0, 3, 3)
    artifact = onnxft.export(module, torch.randn(4, 7), tmp_path / "normalized", batch_size=5, dropout=False)
    with TrainSession(artifact, threads=1) as session:
        found = session.gradients({"x": x, "labels": labels})
        assert np.isnan(session.predict({"x": np.zeros((1, 7), np.float32)})["output"]).all()
    torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(labels)).backward()
    assert_close(found, {n: p.grad.numpy() for n, p in module.named_parameters()}, 1e-5)


def test_sample_weights_weight_the_rows(exported: Callable[..., Path]) -> None:
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0], np.float32)
    batch = batch_of("mlp", 5)
    loss, expected = torch_gradients("mlp", batch, weights)
    with TrainSession(exported("mlp"), threads=1) as session:
        weighted = {**batch, "sample_weights": weights}
        assert_close(session.gradients(weighted), expected, 1e-5)
        scores = session.evaluate(weighted)
        result = session.step(weighted, lr=0.0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    assert result.weight_sum == pytest.approx(6.5)
    correct = scores.outputs["output"].argmax(1) == batch["labels"]
    assert scores.metrics["accuracy"] == pytest.approx((weights * correct).sum() / 6.5)


@pytest.mark.parametrize(("limits", "clip"), [({"max_norm": 0.05}, "norm"), ({"max_value": 0.01}, "value")])
def test_a_clipped_step_equals_torch(limits: dict[str, float], clip: str, exported: Callable[..., Path]) -> None:
    batch = batch_of("mlp", 16)
    with TrainSession(exported("mlp", "sgd"), threads=1) as session:
        before = session.parameters
        session.step(batch, lr=1.0, weight_decay=0.0, **limits)
        moved = {name: before[name] - value for name, value in session.parameters.items()}
    _, gradients = torch_gradients("mlp", batch)
    tensors = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients.values()]
    for tensor, g in zip(tensors, gradients.values(), strict=True):
        tensor.grad = torch.tensor(g)
    if clip == "norm":
        torch.nn.utils.clip_grad_norm_(tensors, limits["max_norm"])
    else:
        torch.nn.utils.clip_grad_value_(tensors, limits["max_value"])
    expected = {name: t.grad.numpy() for name, t in zip(gradients, tensors, strict=True)}
    assert any(np.abs(expected[n] - g).max() > 0 for n, g in gradients.items())
    for name, value in expected.items():
        np.testing.assert_allclose(moved[name], value, atol=1e-7, rtol=1e-4, err_msg=name)


def test_gradients_change_nothing(exported: Callable[..., Path]) -> None:
    batch, other = batch_of("mlp", 16), batch_of("mlp", 16, seed=23)
    with TrainSession(exported("mlp"), threads=1) as plain, TrainSession(exported("mlp"), threads=1) as watched:
        for session in (plain, watched):
            session.accumulate(batch)
            if session is watched:
                session.gradients(other)
            session.update(lr=0.1)
        assert_close(watched.parameters, plain.parameters, 0)


@pytest.mark.parametrize("way", ["step", "accumulate"])
def test_a_loss_read_late_is_that_of_its_step(way: str, exported: Callable[..., Path]) -> None:
    batches = [batch_of("mlp", 16, seed) for seed in range(4)]

    def run(session: TrainSession, batch: dict[str, np.ndarray]) -> Any:
        if way == "step":
            return session.step(batch, lr=0.1)
        return session.accumulate(batch)

    with TrainSession(exported("mlp"), threads=1) as session:
        at_once = []
        for batch in batches:
            result = run(session, batch)
            at_once.append((result.loss, result.weight_sum, result.metrics))
    with TrainSession(exported("mlp"), threads=1) as session:
        results = [run(session, batch) for batch in batches]
        late = [(r.loss, r.weight_sum, r.metrics) for r in results]
    assert late == at_once
    assert len({loss for loss, *_ in late}) == 4


@pytest.mark.parametrize("rows", [1, 16, 37])
def test_predict_equals_the_outputs_of_evaluate_and_torch(rows: int, exported: Callable[..., Path]) -> None:
    batch = batch_of("convnet", rows)
    with TrainSession(exported("convnet"), threads=1) as session:
        scores = session.evaluate(batch)
        outputs = session.predict({"image": batch["image"]})
    module, _ = models.convnet()
    with torch.no_grad():
        expected = module.eval()(torch.tensor(batch["image"]))
    np.testing.assert_array_equal(outputs["output"], scores.outputs["output"])
    np.testing.assert_allclose(outputs["output"], expected.numpy(), rtol=1e-4, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor(batch["labels"])).item()
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    assert scores.metrics["accuracy"] == pytest.approx(np.mean(expected.numpy().argmax(1) == batch["labels"]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, b: s.update(lr=0.1), ConfigError, "call accumulate() before update()"),
        (lambda s, b: (s.accumulate(b), s.step(b, lr=0.1)), ConfigError, "call update() before the next step()"),
        (lambda s, b: (s.accumulate(b), s.save_checkpoint("c")), ConfigError, "call update() before save_checkpoint()"),
        (lambda s, b: s.step(b, lr=-0.1), ConfigError, "lr of group 'default' is -0.1"),
        (lambda s, b: s.step(b, lr=float("nan")), ConfigError, "lr of group 'default' is nan"),
        (lambda s, b: s.step(b, lr=0.1, weight_decay=float("inf")), ConfigError, "weight_decay of group 'default'"),
        (lambda s, b: s.step(b, lr={"head": 0.1}), ConfigError, "group once (default), not head"),
        (lambda s, b: s.step(b, lr=0.1, max_norm=0.0), ConfigError, "max_norm is 0.0"),
        (lambda s, b: s.step(b, lr=0.1, max_value=-1.0), ConfigError, "max_value is -1.0"),
        (lambda s, b: s.step(b, lr=0.1, max_norm=float("nan")), ConfigError, "max_norm is nan"),
        (lambda s, b: s.step(batch_of("mlp", 17), lr=0.1), DataError, "17 rows; this session takes at most 16"),
        (lambda s, b: s.gradients({**b, "sample_weights": np.zeros(3)}), DataError, "all 3 rows of the batch"),
        (lambda s, b: s.accumulate({**b, "sample_weights": np.zeros(3)}), DataError, "all 3 rows of the batch"),
    ],
)  # fmt: skip
def test_a_wrong_call_changes_nothing(
    call: Callable[..., Any], error: type[Exception], words: str, exported: Callable[..., Path]
) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        before = session.parameters
        with pytest.raises(error) as err:
            call(session, batch_of("mlp", 3))
        assert words in str(err.value)
        assert session.step_count == 0
        assert_close(session.parameters, before, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be below 2**63"),
    ],
)
def test_options_of_a_session_are_checked(options: dict[str, int], words: str, exported: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as err:
        TrainSession(exported("mlp"), **options)
    assert words in str(err.value)


@pytest.mark.parametrize("rate", [{"lr": -1.0}, {"lr": 0.1, "weight_decay": -1.0}])
def test_a_refused_rate_of_a_clipped_step_leaves_no_gradients(
    rate: dict[str, float], exported: Callable[..., Path]
) -> None:
    with TrainSession(exported("mlp")) as session:
        with pytest.raises(ConfigError, match="must be finite and not negative"):
            session.step(batch_of("mlp", 3), **rate, max_norm=1.0)
        session.step(batch_of("mlp", 3), lr=0.1)
        assert session.step_count == 1
