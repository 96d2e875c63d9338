from __future__ import annotations

import numpy as np
import pytest

from onnxft.benchmark.numerics import compare, gradient_difference

REF = {"w": np.full((2, 3), 2.0, np.float32), "b": np.array([3.0, 4.0, 0.0], np.float32)}


@pytest.mark.parametrize(
    ("g", "ref", "largest", "expected"),
    [
        ([3.0, 5.0], [3.0, 4.0], 5.0, 0.2),
        ([3.0, 4.0], [3.0, 4.0], 5.0, 0.0),
        # the norm of ref is below 1e-4 of the largest, which takes its place
        ([1e-6, 0.0], [0.0, 0.0], 5.0, 1e-6 / 5e-4),
    ],
)
def test_gradient_difference(g: list[float], ref: list[float], largest: float, expected: float) -> None:
    assert gradient_difference(np.array(g), np.array(ref), largest) == pytest.approx(expected)


def test_compare_names_the_worst_parameter() -> None:
    gradients = {"w": REF["w"] * 1.001, "b": REF["b"] * 1.01}
    numerics = compare(2.2, gradients, 2.0, REF, "torch")
    assert numerics.reason is None
    assert numerics.loss_difference == pytest.approx(0.1)
    assert numerics.gradient_difference == pytest.approx(0.01, rel=1e-4)
    assert (numerics.worst_parameter, numerics.reference) == ("b", "torch")


@pytest.mark.parametrize(
    ("gradients", "ref_loss", "ref_gradients", "words"),
    [
        ({"w": REF["w"]}, 2.0, REF, "it has no gradient of 'b'"),
        (REF, 2.0, {"b": REF["b"]}, "torch has no gradient of 'w'"),
        ({**REF, "w": REF["w"].T}, 2.0, REF, "'w' has shape (3, 2), that of torch (2, 3)"),
        ({**REF, "w": REF["w"] * np.nan}, 2.0, REF, "'w' is not finite"),
        (
            {k: v * 0 for k, v in REF.items()},
            2.0,
            {k: v * 0 for k, v in REF.items()},
            "all gradients of torch are zero",
        ),
        (REF, 0.0, REF, "the loss of torch is zero"),
    ],
)
def test_what_cannot_be_compared_has_a_reason_and_no_number(
    gradients: dict[str, np.ndarray], ref_loss: float, ref_gradients: dict[str, np.ndarray], words: str
) -> None:
    numerics = compare(2.0, gradients, ref_loss, ref_gradients, "torch")
    assert numerics.loss_difference is None
    assert numerics.gradient_difference is None
    assert numerics.reason is not None
    assert words in numerics.reason
