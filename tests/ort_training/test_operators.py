"""What onnxruntime-training computes for every lowered operator equals torch's gradients, ties and bounds too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

import pytest
import single_operators
from single_operators import Trial, build, run

from onnxft.errors import GradientError, ModelError
from onnxft.generators.ort_training.lowering import lower
from onnxft.generators.ort_training.lowering.trusted import trusted
from onnxft.grad.registry import supported_ops

AT_MOST = 8
"""Cases of an operator in the quick test, spread evenly; the slow one has all."""


def quick() -> Iterator[Trial]:
    """Some cases of every operator, one with a symbolic batch; each input alone where it keeps its own gradient."""
    by_operator = defaultdict(list)
    for trial in single_operators.whole():
        by_operator[trial.case.op].append(trial)
    for trials in by_operator.values():
        yield from trials[:: -(-len(trials) // AT_MOST)]
    yield from {trial.case.op: trial for trial in single_operators.symbolic()}.values()
    yield from {(t.case.op, t.trained): t for t in single_operators.single() if t.case.op in trusted()}.values()


def everything() -> Iterator[Trial]:
    return chain(single_operators.whole(), single_operators.symbolic(), single_operators.single())


def wrong(trials: Iterator[Trial], python: str, folder) -> dict[str, str]:
    """{trial: what is wrong with it}, refusals included."""
    models, found = [], {}
    for trial in trials:
        model, trained = build(trial)
        try:
            models.append((trial, lower(model, list(trained), "loss"), trained))
        except (GradientError, ModelError) as err:
            found[trial.name] = f"refused: {err}"
    results = zip(models, run(python, folder, models), strict=True)
    return found | {trial.name: result for (trial, *_), result in results if result}


def assert_only_these_are_refused(found: dict[str, str]) -> None:
    """What trains running statistics, and what takes nothing of a value."""
    for name, result in found.items():
        if name.startswith("BatchNormalization") and "training_mode=1" in name:
            assert "is in training mode" in result, name
        else:
            # A slice of nothing, which is known before where its batch is static.
            assert name.startswith("Slice 3x2-1-1-1-1 [9]:"), f"{name}: {result}"
            assert "error: [ONNXRuntimeError]" in result if "symbolic" in name else "takes nothing (shape" in result


def test_every_operator_with_a_rule_is_tried() -> None:
    # Gelu is newer than opset 18, and lowered before.
    assert {trial.case.op for trial in quick()} | {"Gelu"} == set(supported_ops())


def test_gradients_of_every_operator_equal_torch(ort_python: str, tmp_path) -> None:
    assert_only_these_are_refused(wrong(quick(), ort_python, tmp_path))


@pytest.mark.slow
def test_gradients_of_every_case_equal_torch(ort_python: str, tmp_path) -> None:
    assert_only_these_are_refused(wrong(everything(), ort_python, tmp_path))
