from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from task_reports import failed, report, row
from tool_modules import imported

from onnxft.benchmark.report import Report, Row
from onnxft.errors import ConfigError, DataError

PARTS: dict[str, Any] = {"cells-head": "head", "news-full": "full"}
TORCH = row("torch", 0.080, 600_000_000)


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with imported("benchmark_tasks", "benchmark_") as module:
        yield module


@pytest.fixture(scope="module")
def baseline(tool: ModuleType) -> ModuleType:
    return sys.modules["benchmark_baseline"]


def write(folder: Path, *reports: Report, task: str = "cells-head") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for run, each in enumerate(reports, start=1):
        (folder / f"{task}.{run}.json").write_bytes(each.to_json())
    return folder


def call(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_tasks.py", *map(str, words)])
    tool.main()


def verdicts(text: str) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """{(task, side, of): stored, now, change, verdict}"""
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {(c[0], c[1], c[2]): tuple(c[3:]) for c in cells if len(c) == 7 and c[2] in ("time", "memory")}


# ----- what is stored -----


@pytest.mark.parametrize(
    ("rows", "side", "expected"),
    [
        ([TORCH, row("cpu", 0.016, 150_000_000)], "cpu", (5.0, 0.25)),
        # the compiled torch is another competitor
        ([TORCH, row("torch-compile", 0.020), row("cpu", 0.016, 150_000_000)], "cpu", (5.0, 0.25)),
        # time in the same precision, memory beside float32
        ([TORCH, row("torch:bfloat16", 0.040, 450_000_000, precision="bfloat16"),
          row("openvino:bfloat16", 0.010, 240_000_000, precision="bfloat16")], "openvino:bfloat16", (4.0, 0.4)),
        ([TORCH, row("openvino:bfloat16", 0.010, 240_000_000, precision="bfloat16")], "openvino:bfloat16", (None, 0.4)),
        ([TORCH, row("cpu", 0.016, None)], "cpu", (5.0, None)),
    ],
)  # fmt: skip
def test_ratios_are_those_to_torch(
    baseline: ModuleType, rows: list[Row], side: str, expected: tuple[float | None, float | None]
) -> None:
    made = baseline.measured({"cells-head": [report(*rows)]}, PARTS)
    ratios = made.ratios["cells-head"]
    assert list(ratios) == [side]
    assert (ratios[side].time, ratios[side].memory) == pytest.approx(expected)


def test_ratios_are_medians_over_the_runs_and_carry_what_produced_them(
    tool: ModuleType, baseline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_version(made: Row, **versions: str) -> Row:
        assert made.measurement is not None
        return replace(made, measurement=replace(made.measurement, versions=versions))

    reports = [
        report(with_version(TORCH, torch="2.13", numpy="2.1"), with_version(row("cpu", seconds), numpy="2.2"))
        for seconds in (0.010, 0.040, 0.020)
    ]
    folder = write(tmp_path / "out", *reports)
    write(folder, report(TORCH, row("cpu", 0.016)), task="news-full")
    file = tmp_path / "new" / "baseline.json"
    call(tool, monkeypatch, "--summary", folder, "--write-baseline", file)
    stored = json.loads(file.read_bytes())
    assert stored["ratios"]["cells-head"]["cpu"] == {"time": pytest.approx(4.0), "memory": pytest.approx(5 / 6)}
    origin = stored["origin"]
    assert {key: origin[key] for key in ("cpu", "threads", "platform", "runs", "started")} == {
        "cpu": "a processor", "threads": 2, "platform": "Linux", "runs": 1, "started": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    assert origin["versions"] == {"numpy": "2.1, 2.2", "onnxft": "1.0", "torch": "2.13"}
    assert origin["commit"]
    assert baseline.read_baseline(file).to_json() == file.read_bytes()


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([report(row("cpu", 0.016))], "no provider has a ratio to torch. Measure with --side torch"),
        ([report(TORCH)], "no provider has a ratio to torch"),
        ([report(TORCH, row("cpu", 0.016)), report(TORCH, row("cpu", 0.016), threads=4)],
         "several machines (2 threads of 'a processor', 4 threads of 'a processor')"),
        ([report(TORCH, row("cpu", 0.016), failed("openvino", "ProviderError: no device"))],
         "openvino in cells-head: ProviderError: no device."),
        ([report(TORCH, row("cpu", 0.016, difference=0.5))], "cpu in cells-head: its gradients are wrong."),
    ],
)  # fmt: skip
def test_a_baseline_is_not_made_of_what_does_not_work(
    tool: ModuleType, reports: list[Report], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tool, monkeypatch, "--summary", write(tmp_path / "out", *reports), "--write-baseline", tmp_path / "b.json")
    assert words in str(ended.value)
    assert not (tmp_path / "b.json").exists()


# ----- the comparison -----


def stored_baseline(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *rows: Row) -> Path:
    file = tmp_path / "baseline.json"
    call(tool, monkeypatch, "--summary", write(tmp_path / "before", report(*rows)), "--write-baseline", file)
    return file


@pytest.mark.parametrize(
    ("now", "options", "expected"),
    [
        # 80 / 16 = 5 and a quarter are stored
        (row("cpu", 0.016, 150_000_000), [], {"time": "as before", "memory": "as before"}),
        (row("cpu", 0.080 / 4.30, 157_000_000), [], {"time": "as before", "memory": "as before"}),
        (row("cpu", 0.080 / 4.20, 150_000_000), [], {"time": "**worse**", "memory": "as before"}),
        (row("cpu", 0.016, 158_000_000), [], {"time": "as before", "memory": "**worse**"}),
        (row("cpu", 0.080 / 5.80, 140_000_000), [], {"time": "better", "memory": "better"}),
        (row("cpu", 0.080 / 5.70, 143_000_000), [], {"time": "as before", "memory": "as before"}),
        (row("cpu", 0.080 / 4.20, 158_000_000), ["--time-tolerance", "20", "--memory-tolerance", "6"],
         {"time": "as before", "memory": "as before"}),
        (row("cpu", 0.080 / 4.90, 152_000_000), ["--time-tolerance", "1", "--memory-tolerance", "1"],
         {"time": "**worse**", "memory": "**worse**"}),
        (row("cpu", 0.080 / 9, 100_000_000, difference=0.5), [],
         dict.fromkeys(("time", "memory"), "**worse**: its gradients are wrong")),
        (failed("cpu", "it | crashed"), [], dict.fromkeys(("time", "memory"), "**worse**: it / crashed")),
    ],
)  # fmt: skip
def test_a_ratio_that_is_worse_than_the_tolerance_fails(
    tool: ModuleType, now: Row, options: list[str], expected: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = stored_baseline(tool, monkeypatch, tmp_path, TORCH, row("cpu", 0.016, 150_000_000))
    # The failed side does not keep the others from being compared.
    folder = write(tmp_path / "now", report(TORCH, now, row("openvino", 0.02, 200_000_000)))
    capsys.readouterr()
    if any("worse" in verdict for verdict in expected.values()):
        with pytest.raises(SystemExit) as ended:
            call(tool, monkeypatch, "--summary", folder, "--baseline", file, *options)
        assert ended.value.code == 10
    else:
        call(tool, monkeypatch, "--summary", folder, "--baseline", file, *options)
    found = verdicts(capsys.readouterr().out)
    assert {of: found["cells-head", "cpu", of][-1] for of in expected} == expected
    assert {found["cells-head", "openvino", of][-1] for of in expected} == {"new"}


def test_the_table_says_what_moved_and_what_was_not_measured(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [TORCH, row("cpu", 0.016, 150_000_000), row("openvino", 0.020, 300_000_000)]
    write(tmp_path / "before", report(TORCH, row("cpu", 0.064, 390_000_000)), task="news-full")
    file = stored_baseline(tool, monkeypatch, tmp_path, *rows)
    now = replace(report(TORCH, row("cpu", 0.017, 153_000_000)), onnxft="1.1")
    capsys.readouterr()
    call(tool, monkeypatch, "--summary", write(tmp_path / "now", now), "--baseline", file)
    text = capsys.readouterr().out
    assert verdicts(text) == {
        ("cells-head", "cpu", "time"): ("5.00", "4.71", "-5.9 %", "as before"),
        ("cells-head", "cpu", "memory"): ("0.250", "0.255", "+2.0 %", "as before"),
        ("cells-head", "openvino", "time"): ("4.00", "-", "-", "not measured"),
        ("cells-head", "openvino", "memory"): ("0.500", "-", "-", "not measured"),
        ("news-full", "cpu", "time"): ("1.25", "-", "-", "not measured"),
        ("news-full", "cpu", "memory"): ("0.650", "-", "-", "not measured"),
    }
    assert "Other versions, which move ratios too: onnxft 1.0 -> 1.1." in text
    assert "2 as before, 4 not measured." in text


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (report(TORCH, row("cpu", 0.016), cpu="another"), "is of 2 threads of 'a processor', these runs are of 2 "),
        (report(TORCH, row("cpu", 0.016), threads=4), "these runs are of 4 threads of 'a processor'"),
        (report(row("cpu", 0.016)), "no provider has a ratio to torch"),
        (report(TORCH, row("openvino", 0.016)), "was measured: choose its tasks and sides"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tool: ModuleType, now: Report, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored_baseline(tool, monkeypatch, tmp_path, TORCH, row("cpu", 0.016))
    with pytest.raises(SystemExit) as ended:
        call(tool, monkeypatch, "--summary", write(tmp_path / "now", now), "--baseline", file)
    assert words in str(ended.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--baseline", "none.json"], DataError, "'none.json' is no baseline"),
        (["--baseline", "other.json"], DataError, "'other.json' is no baseline.* --write-baseline"),
        (["--baseline", "good.json", "--threads", "4"], ConfigError, "these runs are of 4 threads"),
        (["--baseline", "good.json", "--time-tolerance", "-1"], ConfigError, "--time-tolerance is -1"),
        (["--baseline", "good.json", "--memory-tolerance", "100"], ConfigError, "--memory-tolerance is 100"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(
    tool: ModuleType, baseline: ModuleType, options: list[str], error: type[Exception], words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    stored_baseline(tool, monkeypatch, tmp_path, TORCH, row("cpu", 0.016)).rename("good.json")
    Path("other.json").write_text('{"ratios": {}}')
    with pytest.raises(error, match=words):
        baseline.check_options(tool.parse(options), "a processor")
    if "good.json" in options and error is ConfigError:
        baseline.check_options(tool.parse(options[:2]), "a processor")


def test_a_baseline_is_either_compared_or_written(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.parse(["--baseline", "a.json", "--write-baseline", "b.json"])
    assert "not allowed with argument" in capsys.readouterr().err
