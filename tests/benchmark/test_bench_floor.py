"""The peaks of a side, by a clock that the test winds, and the floor that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pytest

from onnxft.benchmark import peaks
from onnxft.benchmark.config import BenchConfig, Scenario, Side
from onnxft.benchmark.exchange import Measurement, Peaks
from onnxft.benchmark.floor import floor_seconds, with_floors, work_of
from onnxft.benchmark.report import Row
from onnxft.benchmark.statistics import summarize
from onnxft.manifest import Manifest
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import OpenSession, open_session
from onnxft.step_work import Amount, StepWork

REACHED = Peaks(flops=300, bandwidth=45)
WORK = StepWork(Amount(600, 60), Amount(200, 20), Amount(100, 10))
TRAINED = StepWork(Amount(150, 15), Amount(200, 20), Amount(100, 10))
MEASURED = Measurement("p", "p", {}, None, {}, 1.0, 1.0, (), (2.0, 4.0, 9.0), None, 0.5)


def clock(seconds: list[float]) -> Callable[[], float]:
    """Each timed call takes the next of `seconds`."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for length in seconds:
            yield now
            now += length
            yield now

    return partial(next, ticks())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.3, 0.2, 0.25, 0.2, 0.3], 0.2),
        # nothing is repeated once a second is over
        ([1.5], 1.5),
        ([0.6, 0.5], 0.5),
    ],
)
def test_the_shortest_call_counts_and_the_first_does_not(seconds: list[float], expected: float) -> None:
    calls = []
    assert peaks.shortest(lambda: calls.append(1), clock(seconds)) == pytest.approx(expected)
    assert len(calls) == len(seconds) + 1


@pytest.mark.parametrize(
    ("seconds", "tried", "expected"),
    [
        # what multiplies slowly is asked for no more
        ([[0.5] * 2], [256], 4 * 2 * 256**3 / 0.5),
        ([[0.01] * 5, [0.75] * 2], [256, 2048], 4 * 2 * 2048**3 / 0.75),
        ([[0.001] * 5, [0.01] * 5, [0.05] * 5], [256, 2048, 4096], 4 * 2 * 4096**3 / 0.05),
        # the largest is not always the best
        ([[0.001] * 5, [0.015] * 5, [0.5] * 2], [256, 2048, 4096], 4 * 2 * 2048**3 / 0.015),
        (
            [[0.0001] * 5, [0.001] * 5, [0.002] * 5, [0.004] * 5],
            [256, 2048, 4096, 8192],
            4 * 2 * 8192**3 / 0.004,
        ),
    ],
)
def test_larger_matrices_are_tried_until_a_run_is_long_enough(
    seconds: list[list[float]], tried: list[int], expected: float
) -> None:
    sizes = []

    def prepare(n: int) -> Callable[[], object]:
        sizes.append(n)
        return lambda: None

    found = peaks.peak_flops(prepare, clock([s for part in seconds for s in part]))
    assert found == pytest.approx(expected)
    assert sizes == tried


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "COPY_BYTES", 12_000)
    found = peaks.copy_bandwidth(3, clock([0.25] * 5))
    assert found == pytest.approx(2 * 12_000 / 0.25)


def opened(model: bytes, dimensions: Mapping[str, int]) -> OpenSession:
    return open_session(model, Execution("cpu", threads=1), dimensions=dimensions)


def test_the_models_compute_what_they_say() -> None:
    rng = np.random.Generator(np.random.Philox(0))
    x, w = (rng.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    (y,) = opened(peaks.MATMULS, {"n": 5}).session.run(["y"], {"x": x, "w": w})
    np.testing.assert_allclose(y, x @ np.linalg.matrix_power(w, peaks.CHAIN), rtol=1e-4, atol=1e-4)
    (y,) = opened(peaks.NEGATION, {"n": 5}).session.run(["y"], {"x": x})
    np.testing.assert_array_equal(y, -x)


@pytest.mark.parametrize("memory", ["cpu", "cuda"])
def test_a_session_is_measured_where_it_keeps_its_parameters(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "MATMUL_SIZES", (64, 96))
    monkeypatch.setattr(peaks, "COPY_BYTES", 1 << 20)
    prepared = []

    def prepare(session: OpenSession, n: int) -> Callable[[], object]:
        prepared.append((len(session.session.get_inputs()), n))
        return (lambda: None) if memory != "cpu" else _prepare(session, n)

    def open_there(model: bytes, dimensions: Mapping[str, int]) -> OpenSession:
        session = opened(model, dimensions)
        return replace(session, provider=replace(session.provider, memory=memory))

    _prepare = peaks._prepare
    monkeypatch.setattr(peaks, "_prepare", prepare)
    found = peaks.session_peaks(open_there, 1)
    assert found.flops > 0
    assert found.bandwidth > 0
    # a device's own memory is measured by a model of one input, that of the processor by numpy
    assert prepared == [(2, 64), (2, 96), *([(1, 96)] if memory == "cuda" else [])]


def test_peaks_that_cannot_be_measured_leave_the_times_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Peaks:
        raise MemoryError("no room for 8192 rows")

    assert peaks.measure_peaks(fails) is None
    assert "no room for 8192 rows" in capsys.readouterr().err
    assert peaks.measure_peaks(lambda: Peaks(2.0, 1.0)) == Peaks(2.0, 1.0)


@pytest.mark.parametrize(
    ("work", "precision", "expected"),
    [
        (Amount(900, 90), "float32", 900 / 300 + 90 / 45),
        (Amount(900, 90), "bfloat16", 900 / 300 + 90 / 2 / 45),
        (Amount(900, 90), "float16", 900 / 300 + 90 / 2 / 45),
        (Amount(0, 90), "float32", 2.0),
    ],
)
def test_the_floor_is_operations_at_the_peak_and_bytes_at_the_bandwidth(
    work: Amount, precision: str, expected: float
) -> None:
    assert floor_seconds(work, REACHED, precision) == pytest.approx(expected)


def row(batch_size: int = 6, peaks: Peaks | None = REACHED, kind: Literal["provider", "baseline"] = "provider") -> Row:
    measured = replace(MEASURED, peaks=peaks)
    return Row(Side("p", kind), None, None, measured, summarize(measured.step_seconds, 6), batch_size=batch_size)


@pytest.mark.parametrize(
    ("made", "scenario", "seconds"),
    [
        (row(), "train", 900 / 300 + 90 / 45),
        (row(batch_size=18), "train", 15.0),
        (row(), "inference", 600 / 300 + 60 / 45),
        (row(), "cached", 450 / 300 + 45 / 45),
        (row(batch_size=18), "cached", 7.5),
        # a baseline does the whole work
        (row(kind="baseline"), "cached", 900 / 300 + 90 / 45),
        (row(peaks=None), "train", None),
        (Row(Side("p", "provider"), "it crashed"), "train", None),
    ],
)
def test_a_row_has_its_floor_and_its_distance(
    made: Row, scenario: Scenario, seconds: float | None, fake_manifest: Callable[..., Manifest]
) -> None:
    manifest = replace(fake_manifest(), work=WORK, work_from_features=TRAINED)
    assert manifest.batch_size == 6
    (found,) = with_floors([made], manifest, BenchConfig(scenario=scenario))
    if seconds is None:
        assert found.floor is None
    else:
        assert found.floor is not None
        assert found.floor.seconds == pytest.approx(seconds)
        assert found.floor.distance == pytest.approx(4.0 / seconds)


def test_without_work_there_is_no_floor(fake_manifest: Callable[..., Manifest]) -> None:
    assert with_floors([row()], fake_manifest(), BenchConfig())[0].floor is None
    whole = replace(fake_manifest(), work=WORK)
    assert with_floors([row()], whole, BenchConfig(scenario="cached"))[0].floor is None
    assert work_of(fake_manifest(), 6, "train") is None
    assert work_of(whole, 6, "cached") is None
    assert work_of(whole, 12, "train") == Amount(1800, 180)
    assert work_of(replace(whole, work_from_features=TRAINED), 12, "cached") == Amount(900, 90)
