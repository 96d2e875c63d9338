"""The whole benchmark with interpreters that stand in for a side's: what a worker may do, and what the rows say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.numerics import RANDOM
from onnxft.benchmark.report import Report
from onnxft.benchmark.run import bench
from onnxft.benchmark.shared import SharedBaselines
from onnxft.errors import ArtifactError, OnnxftError, ProviderError

Bench = Callable[..., Report]

FAST, SLOW = "respond([0.010, 0.012, 0.011])", "respond([0.020, 0.022, 0.024])"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.abort()", "ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL (often: out of memory)"),
        ("print('no kernel\\x1b[31m for Conv'); sys.exit(4)", "exit code 4; its last output: no kernel [31m for Conv"),
        ("Path(request['result']).write_text('}{ garbage')", "no readable result"),
        ("Path(request['result']).write_text('{}')", "no readable result"),
        ("Path(request['result']).write_text(json.dumps({'measurement': {'loss': 1}}))", "no readable result"),
        ("print('garbage')", "no readable result; its last output: garbage"),
        (
            "failure = {'kind': 'ProviderError', 'message': 'no GPU'}\n"
            "Path(request['result']).write_text(json.dumps({'failure': failure}))\n"
            "sys.exit(1)",
            "ProviderError: no GPU",
        ),
        (f"{FAST}\nPath(request['gradients']).write_bytes(b'garbage')", "gradients cannot be read"),
        (f"{FAST}\nos.abort()", "ended by SIGABRT"),
        ("sys.exit(\"No module named 'onnxft'\")", "python_openvino -m pip install onnxft"),
    ],
)
def test_a_side_that_fails_has_a_row_with_the_reason_and_the_others_run(run: Bench, body: str, words: str) -> None:
    report = run({"openvino": body, "cpu": FAST})
    bad, good = report.rows
    assert bad.reason is not None
    assert words in bad.reason
    assert (bad.measurement, bad.summary, bad.ratio, bad.numerics) == (None, None, None, None)
    assert good.reason is None
    assert good.summary is not None
    assert report.reference == report.fastest_provider == "cpu"
    report.check()


def test_a_side_that_hangs_is_killed(run: Bench) -> None:
    (row,) = run({"cpu": "time.sleep(60)"}, time_limit_seconds=1, min_seconds=0).rows
    assert row.reason is not None
    assert "no result within 1 s" in row.reason


def test_every_side_failed(run: Bench) -> None:
    report = run({"cpu": "os.abort()", "openvino": "sys.exit(2)"})
    assert [row.side.name for row in report.rows] == ["cpu", "openvino"]
    assert report.reference is None
    assert report.fastest_provider is None
    with pytest.raises(ProviderError, match="every side of the benchmark failed"):
        report.check()


def test_rows_are_compared_with_the_baseline(run: Bench) -> None:
    report = run({"cpu": FAST, "torch": SLOW, "openvino": "respond([0.005, 0.006], loss=1.65, scale=1.1)"})
    torch, cpu, openvino = report.rows
    assert report.reference == torch.side.name == "torch"
    assert report.fastest_provider == "openvino"
    assert torch.ratio is None
    assert torch.numerics is None
    assert cpu.ratio is not None
    assert cpu.ratio.value == pytest.approx(2.0)
    assert cpu.numerics is not None
    assert (cpu.numerics.loss_difference, cpu.numerics.gradient_difference) == (0, 0)
    assert openvino.numerics is not None
    assert openvino.numerics.loss_difference == pytest.approx(0.1)
    assert openvino.numerics.gradient_difference == pytest.approx(0.1, rel=1e-6)
    assert openvino.numerics.worst_parameter == "fc.weight"


def test_shared_baselines_are_measured_once(run: Bench, tmp_path: Path) -> None:
    shared = SharedBaselines(tmp_path)
    first = run({"torch": SLOW, "torch-compile": "os.abort()", "cpu": FAST}, shared=shared)
    again = run(
        {"torch": "os.abort()", "torch-compile": FAST, "cpu": "respond([0.005, 0.005], scale=1.1)"}, shared=shared
    )
    assert again.rows[:2] == first.rows[:2]  # the failure too
    assert again.rows[1].reason is not None
    assert again.reference == "torch"
    for report, ratio, difference in ((first, 2.0, 0.0), (again, 4.4, 0.1)):
        cpu = report.rows[2]
        assert cpu.ratio is not None
        assert cpu.ratio.value == pytest.approx(ratio)
        assert cpu.numerics is not None
        assert (cpu.numerics.reference, cpu.numerics.gradient_difference) == ("torch", pytest.approx(difference))


def test_a_model_that_draws_random_numbers_is_compared_among_providers_only(run: Bench) -> None:
    report = run({"torch": SLOW, "cpu": FAST, "openvino": FAST}, random=True)
    torch, cpu, openvino = report.rows
    assert torch.numerics is not None
    assert torch.numerics.reason == RANDOM
    assert cpu.numerics is None  # the reference of the numbers
    assert openvino.numerics is not None
    assert (openvino.numerics.reference, openvino.numerics.gradient_difference) == ("cpu", 0)
    assert report.reference == "torch"  # of the speeds


def test_a_side_without_gradients_keeps_its_times(run: Bench) -> None:
    report = run({"cpu": FAST, "openvino": "respond([0.1, 0.2], gradients_error='no such graph')"})
    row = report.rows[1]
    assert row.summary is not None
    assert row.numerics is not None
    assert row.numerics.reason == "not compared: no such graph"


@pytest.mark.parametrize(
    ("sides", "ratio", "words"),
    [
        ({"torch": SLOW, "cpu": FAST}, 1.9, None),
        ({"torch": SLOW, "cpu": FAST}, 2.1, "'cpu' reaches 2.00"),
        ({"torch": SLOW, "cpu": FAST, "openvino": SLOW}, 1.5, "'openvino' reaches 1.00"),
        ({"torch": SLOW, "cpu": "os.abort()"}, 1.0, "'cpu' failed"),
        ({"torch": "os.abort()", "cpu": FAST}, 0.1, "the reference 'torch' failed"),
        ({"cpu": SLOW, "openvino": FAST}, 1.9, None),
    ],
)
def test_fail_under(run: Bench, sides: dict[str, str], ratio: float, words: str | None) -> None:
    report = run(sides, fail_under=ratio)
    if words is None:
        report.check()
    else:
        with pytest.raises(OnnxftError, match=words):
            report.check()


def test_the_request_holds_what_was_asked_for(run: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    run({"cpu": f"Path({str(copy)!r}).write_text(json.dumps(request))\n{FAST}"}, threads=1, batch_size=5, seed=9)
    request = json.loads(copy.read_text())
    assert (request["threads"], request["batch_size"], request["config"]["seed"]) == (1, 5, 9)
    assert request["artifact"] == str(tmp_path / "artifact")
    assert request["side"] == {"name": "cpu", "kind": "provider"}


def test_logs_are_kept_beside_the_json_of_failed_sides_only(run: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    report = run(
        {"cpu": f"print('fine')\n{FAST}", "openvino": "print('why', flush=True); os.abort()"},
        keep_logs=out / "bench.json",
    )
    assert [p.name for p in out.iterdir()] == ["bench.openvino.log"]
    assert report.rows[1].log == str(out / "bench.openvino.log")
    assert "why" in (out / "bench.openvino.log").read_text()


def test_json_holds_raw_times_configuration_and_device(run: Bench) -> None:
    report = run({"cpu": FAST, "openvino": "os.abort()"}, threads=1)
    assert Report.from_json(report.to_json()) == report
    data = json.loads(report.to_json())
    assert data["rows"][0]["measurement"]["step_seconds"] == [0.010, 0.012, 0.011]
    assert data["config"]["threads"] == data["device"]["threads"] == 1
    assert data["work"]["num_trainable"] == 16
    assert data["work"]["num_frozen"] == 84


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="onnxft export"):
        bench(tmp_path / "nothing", BenchConfig())
