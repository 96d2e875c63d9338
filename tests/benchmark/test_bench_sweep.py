"""Several points and several repeats, with interpreters that stand in for a side's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxft.benchmark.report import Report
from onnxft.errors import SlowerError

Bench = Callable[..., Report]

# Seconds grow with the rows; torch is slower the more threads it has.
CPU = "s = request['batch_size'] / 1000; respond([s, s])"
TORCH = "s = request['batch_size'] / 1000 * (1 + request['threads']); respond([s, s], loss=1.5 + request['batch_size'])"

FAILS_AT_2 = "if request['threads'] == 2: os.abort()\n"


def at(report: Report) -> dict[str, str | None]:
    return {report.label(row): row.reason for row in report.rows}


def test_every_side_has_a_row_at_every_point(run: Bench) -> None:
    report = run({"torch": TORCH, "cpu": CPU}, batch_size=(3, 5), threads=(1, 2))
    assert [(row.side.name, row.batch_size, row.threads) for row in report.rows] == [
        (side, batch, threads) for batch in (3, 5) for threads in (1, 2) for side in ("torch", "cpu")
    ]
    assert (report.work.batch_size, report.device.threads) == (3, 2)
    assert Report.from_json(report.to_json()) == report


def test_a_row_is_compared_with_the_reference_of_its_own_point(run: Bench) -> None:
    report = run({"torch": TORCH, "cpu": CPU}, batch_size=(3, 5), threads=(1, 2))
    ratios = [row.ratio.value for row in report.rows if row.ratio]
    assert ratios == pytest.approx([2, 3, 2, 3])
    differences = [row.numerics.loss_difference for row in report.rows if row.numerics]
    assert differences == pytest.approx([3 / 4.5, 3 / 4.5, 5 / 6.5, 5 / 6.5])
    assert report.fastest_provider == "cpu"


def test_a_point_that_fails_leaves_the_others(run: Bench, tmp_path: Path) -> None:
    fails = "if request['batch_size'] == 5: print('why', flush=True); os.abort()\n"
    report = run({"torch": fails + TORCH, "cpu": fails + CPU}, batch_size=(3, 5), keep_logs=tmp_path / "b.json")
    first, second, third, fourth = report.rows
    assert first.reason is second.reason is None
    assert third.reason is not None and "SIGABRT" in third.reason
    assert fourth.reason is not None
    assert sorted(p.name for p in tmp_path.glob("*.log")) == [
        f"b.{side}.batch_5.threads_{third.threads}.log" for side in ("cpu", "torch")
    ]


def test_where_the_reference_failed_there_is_no_ratio(run: Bench) -> None:
    fails = "if request['batch_size'] == 3: os.abort()\n"
    report = run({"torch": fails + TORCH, "cpu": CPU, "openvino": CPU}, batch_size=(3, 5), threads=1)
    assert report.reference == "torch"
    assert [row.ratio is None for row in report.rows] == [True, True, True, True, False, False]
    assert [row.numerics.reference if row.numerics else None for row in report.rows] == [
        None, None, "cpu", None, "torch", "torch",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sides", "ratio", "words"),
    [
        ({"torch": TORCH, "cpu": CPU}, 1.9, None),
        ({"torch": TORCH, "cpu": CPU}, 2.5, "'cpu (batch 3, 1 thread)' reaches 2.00"),
        ({"torch": TORCH, "cpu": FAILS_AT_2 + CPU}, 1, "'cpu (batch 3, 2 threads)' failed"),
        ({"torch": FAILS_AT_2 + TORCH, "cpu": CPU}, 1, "'torch (batch 3, 2 threads)' failed"),
    ],
)
def test_fail_under_holds_at_every_point(run: Bench, sides: dict[str, str], ratio: float, words: str | None) -> None:
    report = run(sides, batch_size=3, threads=(1, 2), fail_under=ratio)
    if words is None:
        report.check()
        return
    with pytest.raises(SlowerError) as caught:
        report.check()
    assert words in str(caught.value)


def test_threads_reach_the_libraries_of_the_process(
    run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    body = f"with open({str(tmp_path / 'seen')!r}, 'a') as f: print(os.environ['OMP_NUM_THREADS'], file=f)\n{CPU}"
    report = run({"cpu": body}, threads=(1, 3))
    assert (tmp_path / "seen").read_text().split() == ["1", "3"]
    assert report.device.variables["OMP_NUM_THREADS"] == "7"


def counting(tmp_path: Path, side: str, body: str) -> str:
    """`body` with `n`, the number of the run of the side, which is written down."""
    return f"""
log = Path({str(tmp_path / "order")!r})
order = log.read_text().split() if log.exists() else []
n = order.count({side!r})
log.write_text(' '.join([*order, {side!r}]))
{body}
"""


def test_repeats_run_all_sides_in_turn_and_pool_their_times(run: Bench, tmp_path: Path) -> None:
    torch = counting(tmp_path, "torch", "respond([0.04 + 0.04 * n, 0.06 + 0.06 * n], peak_rss_bytes=10 - n)")
    cpu = counting(tmp_path, "cpu", "respond([0.02, 0.03], peak_rss_bytes=20 + n, build_seconds=float(n))")
    report = run({"torch": torch, "cpu": cpu}, repeats=2)
    assert (tmp_path / "order").read_text().split() == ["torch", "cpu", "torch", "cpu"]
    reference, row = report.rows
    assert reference.measurement is not None
    assert reference.measurement.step_seconds == pytest.approx((0.04, 0.06, 0.08, 0.12))
    assert reference.measurement.peak_rss_bytes == 10
    assert reference.repeat_means == pytest.approx((0.05, 0.1))
    assert row.measurement is not None
    assert (row.measurement.build_seconds, row.measurement.peak_rss_bytes) == (0, 21)
    assert row.summary is not None and row.summary.count == 4
    assert row.ratio is not None
    # of the repeats 2 and 4
    assert (row.ratio.value, row.ratio.spread) == pytest.approx((3, 2**0.5))
    assert row.ratio.over == "repeats"


def test_a_side_that_fails_in_a_repeat_says_so_and_is_not_run_again(run: Bench, tmp_path: Path) -> None:
    torch = counting(tmp_path, "torch", "if n == 1: os.abort()\nrespond([0.1, 0.2])")
    report = run({"torch": torch, "cpu": counting(tmp_path, "cpu", CPU)}, repeats=3)
    assert (tmp_path / "order").read_text().split() == ["torch", "cpu", "torch", "cpu", "cpu"]
    reason, no_reason = at(report).values()
    assert reason is not None and reason.endswith("(in repeat 2 of 3)")
    assert no_reason is None
    assert (report.reference, report.rows[0].measurement) == ("cpu", None)


def test_numbers_are_compared_with_a_side_in_float32(run: Bench) -> None:
    report = run({"torch:bfloat16": TORCH, "cpu": CPU, "openvino:bfloat16": CPU})
    assert report.reference == "torch:bfloat16"  # of the speeds
    assert [row.numerics and row.numerics.reference for row in report.rows] == ["cpu", None, "cpu"]
