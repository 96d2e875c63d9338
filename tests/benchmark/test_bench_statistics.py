from __future__ import annotations

import math

import pytest

from onnxft.benchmark.statistics import Ratio, repeated_ratio, speed_ratio, summarize
from onnxft.benchmark.units import format_seconds


def test_summary_of_known_times() -> None:
    s = summarize([0.4, 0.1, 0.3, 0.2], batch_size=5)
    assert (s.count, s.minimum, s.maximum) == (4, 0.1, 0.4)
    assert s.mean == pytest.approx(0.25)
    assert s.std == pytest.approx(math.sqrt(0.05 / 3))
    assert s.samples_per_second == pytest.approx(20)
    assert (s.p50, s.p90, s.p95, s.p99) == pytest.approx((0.25, 0.37, 0.385, 0.397))


def test_ratio_is_above_one_for_the_faster_side_and_carries_both_spreads() -> None:
    side, reference = summarize([0.9, 1.1], 1), summarize([3.0, 5.0], 1)
    ratio = speed_ratio(side, reference)
    assert ratio.value == pytest.approx(4.0)
    # relative deviations: 0.1 * sqrt(2) / 1 and sqrt(2) / 4
    assert ratio.spread == pytest.approx(4.0 * math.sqrt(0.02 + 2 / 16))
    inverse = speed_ratio(reference, side)
    assert inverse.spread / inverse.value == pytest.approx(ratio.spread / ratio.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000042, "4.20 µs"),
        (0.00421, "4.21 ms"),
        (0.009996, "10.0 ms"),
        (0.09996, "100 ms"),
        (0.9996, "1.00 s"),
        (61.24, "61.2 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_ratio_of_repeats_is_that_of_pairs() -> None:
    # A machine that is twice as slow in the second repeat changes nothing.
    assert repeated_ratio([1.0, 2.0], [3.0, 6.0]) == Ratio(3.0, 0.0, "repeats")
    ratio = repeated_ratio([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    assert (ratio.value, ratio.spread) == pytest.approx((3.0, 1.0))
