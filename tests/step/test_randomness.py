from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxft.errors import ModelError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import OPSET
from onnxft.manifest import BATCH, Distribution, Port
from onnxft.manifest_file import read_manifest
from onnxft.runtime.random_inputs import draw
from onnxft.runtime.session import TrainSession
from onnxft.step.randomness import randomness_to_inputs

ROWS = 5


def test_random_operators_become_inputs(exported: Callable[..., Path]) -> None:
    manifest = read_manifest(exported("dropped", batch_size=ROWS))
    for role in ("train", "gradients"):
        first, second = sorted(manifest.graphs[role].named("random"), key=lambda p: p.shape[1])
        assert (first.shape, first.distribution) == ((BATCH, 1), Distribution("uniform"))
        assert (second.shape, second.distribution) == ((BATCH, 11), Distribution("dropout", ratio=np.float32(0.4)))
    for role in ("eval", "infer", "update"):
        assert not manifest.graphs[role].named("random")


def test_gradients_equal_torch_with_the_same_masks(exported: Callable[..., Path]) -> None:
    rng = np.random.default_rng(8)
    x, labels = rng.standard_normal((ROWS, 7)).astype(np.float32), rng.integers(0, 3, ROWS)
    session = TrainSession(exported("dropped", batch_size=ROWS), threads=1, seed=3)
    found = session.gradients({"x": x, "labels": labels})

    ports = session.manifest.graphs["train"].named("random")
    numbers = draw(ports, {BATCH: ROWS}, seed=3, step=0, micro_step=0)
    by_kind = {p.distribution.kind: torch.tensor(numbers[p.name]) for p in ports if p.distribution}
    assert torch.unique(by_kind["dropout"]).tolist() == [0.0, pytest.approx(1 / 0.6)]
    module, _ = models.dropped()
    h = torch.relu(module.fc1(torch.tensor(x))) * torch.floor(0.8 + by_kind["uniform"]) / 0.8
    torch.nn.functional.cross_entropy(module.fc2(h * by_kind["dropout"]), torch.tensor(labels)).backward()
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


PORTS = (
    Port("d", "random", "float32", (BATCH, 4000), distribution=Distribution("dropout", ratio=0.3)),
    Port("x", "input", "float32", (BATCH, 7)),
    Port("u", "random", "float32", (BATCH, 4000), distribution=Distribution("uniform", low=-1.0, high=3.0)),
    Port("n", "random", "float64", (BATCH, 4000), distribution=Distribution("normal", low=2.0, high=0.5)),
)


def test_the_same_key_repeats_and_another_differs() -> None:
    key = {"seed": 1, "step": 2, "micro_step": 3}
    first = draw(PORTS, {BATCH: 2}, **key)
    assert list(first) == ["d", "u", "n"]
    for name, value in draw(PORTS, {BATCH: 2}, **key).items():
        np.testing.assert_array_equal(value, first[name])
    for part in key:
        for name, value in draw(PORTS, {BATCH: 2}, **{**key, part: key[part] + 1}).items():
            assert not np.array_equal(value, first[name]), (part, name)


def test_numbers_have_their_distribution() -> None:
    drawn = draw(PORTS, {BATCH: 5}, seed=4, step=0, micro_step=0)
    assert {n: v.dtype.name for n, v in drawn.items()} == {"d": "float32", "u": "float32", "n": "float64"}
    assert (drawn["d"] == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert drawn["d"].mean() == pytest.approx(1.0, abs=0.02)
    assert -1 <= drawn["u"].min() < -0.99 < 2.99 < drawn["u"].max() < 3
    assert (drawn["n"].mean(), drawn["n"].std()) == (pytest.approx(2.0, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_two_masks_of_one_step_differ() -> None:
    twice = (PORTS[0], Port("e", "random", "float32", (BATCH, 4000), distribution=Distribution("dropout", ratio=0.3)))
    drawn = draw(twice, {BATCH: 2}, seed=1, step=0, micro_step=0)
    assert not np.array_equal(drawn["d"], drawn["e"])


def test_a_session_repeats_a_step_and_draws_anew_for_the_next(exported: Callable[..., Path]) -> None:
    artifact = exported("dropped", batch_size=ROWS)
    batch = {"x": np.ones((ROWS, 7), np.float32), "labels": np.zeros(ROWS, np.int64)}

    def losses(seed: int) -> list[float]:
        with TrainSession(artifact, threads=1, seed=seed) as session:
            return [session.step(batch, lr=0.0, weight_decay=0.0).loss for _ in range(3)]

    def micro_losses() -> list[float]:
        with TrainSession(artifact, threads=1, seed=1) as session:
            return [session.accumulate(batch).loss for _ in range(3)]

    assert losses(1) == losses(1)
    assert not set(losses(1)) & set(losses(2))
    assert len(set(losses(1))) == 3
    assert len(set(micro_losses())) == 3


def test_inference_draws_nothing(exported: Callable[..., Path]) -> None:
    x = np.random.default_rng(9).standard_normal((ROWS, 7)).astype(np.float32)
    with TrainSession(exported("dropped", batch_size=ROWS), threads=1) as session:
        found = session.predict({"x": x})["output"]
    module, _ = models.dropped()
    with torch.no_grad():
        np.testing.assert_allclose(found, module.eval()(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_training_without_dropout_is_that_of_the_eval_mode(exported: Callable[..., Path]) -> None:
    rng = np.random.default_rng(10)
    x, labels = rng.standard_normal((ROWS, 7)).astype(np.float32), rng.integers(0, 3, ROWS)
    artifact = exported("dropped", batch_size=ROWS, dropout=False)
    assert not read_manifest(artifact).graphs["train"].named("random")
    with TrainSession(artifact, threads=1) as session:
        found = session.gradients({"x": x, "labels": labels})
    module, _ = models.dropped()
    torch.nn.functional.cross_entropy(module.eval()(torch.tensor(x)), torch.tensor(labels)).backward()
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("op_type", "inputs", "words"),
    [
        ("Multinomial", [], "Multinomial 'n' cannot be in a training graph: it draws by weights"),
        ("Dropout", [1.0, True], "'n' has the ratio 1.0"),
        ("Dropout", ["ratio", True], "input 1 of Dropout 'n' is computed at run time"),
    ],
)
def test_what_cannot_become_an_input_is_an_error(op_type: str, inputs: list[object], words: str) -> None:
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}))
    x = add_input(op, "x", ir.DataType.FLOAT, [BATCH, 3])
    rest = [add_input(op, i, ir.DataType.FLOAT, []) if isinstance(i, str) else i for i in inputs]
    getattr(op, op_type)(x, *rest)
    next(n for n in op.builder.graph if n.op_type == op_type).name = "n"
    with pytest.raises(ModelError) as err:
        randomness_to_inputs(op)
    assert words in str(err.value)
