"""A budget of memory: which batches it picks, that they make the same updates, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from training_fake_session import StopAfter

import onnxft
from onnxft.cli.train import train as train_command
from onnxft.data.arrays import ArrayDataset
from onnxft.data.stream import Stream
from onnxft.errors import ConfigError
from onnxft.manifest import Buffer, Loss, Manifest
from onnxft.manifest_file import read_manifest
from onnxft.training import budget, loop, opening
from onnxft.training.budget import Expected, MemoryPlan, largest
from onnxft.training.config import TrainConfig
from onnxft.yaml_file import read_yaml

torch = pytest.importorskip("torch", reason="torch, of which the models are, is not installed here")
ROWS = 1000
BASE = 50_000_000


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process holds torch, and draws nothing."""
    monkeypatch.setattr(opening, "base_bytes", lambda: BASE)
    monkeypatch.setattr(budget, "can_plot", lambda: False)


@pytest.fixture
def artifact(exported: Callable[..., Path]) -> Path:
    """Pictures of 24 × 24; 384 rows a batch."""
    return exported("convnet", batch_size=384)


def rows(count: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return {"image": rng.standard_normal((count, 1, 24, 24)).astype(np.float32), "labels": labels}


def expected(artifact: Path, manifest: Manifest | None = None, **config: Any) -> Expected:
    data = ArrayDataset(rows(), "the data")
    return Expected(
        artifact, manifest or read_manifest(artifact), TrainConfig(**config), {}, data, None, 1, BASE
    )  # fmt: skip


def needed(artifact: Path, **config: Any) -> int:
    """Bytes that a run is estimated to take."""
    estimate = expected(artifact, **config).plan("cpu").estimate
    assert estimate is not None
    return estimate.total


@pytest.mark.parametrize(
    ("asked", "fits", "picked"),
    [
        ({}, (384, 1), (384, 1)),
        ({}, (192, 2), (192, 2)),
        ({}, (64, 6), (64, 6)),
        ({"batch_size": 288}, (144, 2), (144, 2)),
        ({"batch_size": 288}, (72, 4), (72, 4)),
        ({"batch_size": 192, "accumulate": 3}, (192, 3), (192, 3)),
        ({"batch_size": 192, "accumulate": 3}, (144, 4), (144, 4)),  # what divides the update, if not the batch
        ({"batch_size": 191}, (1, 191), (1, 191)),
    ],
)
def test_the_largest_batches_that_fit_are_picked(
    asked: dict[str, int], fits: tuple[int, int], picked: tuple[int, int], artifact: Path
) -> None:
    limit = needed(artifact, batch_size=fits[0], accumulate=fits[1])
    found = expected(artifact, memory_budget=f"{limit}B", **asked).fitted()
    assert (found.config.batch_size, found.config.accumulate) == picked
    plan = found.plan("cpu")
    assert plan.estimate is not None
    assert plan.estimate.total <= plan.budget == limit
    assert f"batches of {picked[0]} (" in plan.line


@pytest.mark.parametrize(
    ("sizes", "limit", "found"),
    [([16, 8, 4, 2, 1], 20, 16), ([16, 8, 4, 2, 1], 4, 4), ([16, 8, 4, 2, 1], 3, 2), ([16, 8, 4, 2, 1], 0, None),
     ([7, 1], 1, 1), ([7], 6, None), ([1], 1, 1)],
)  # fmt: skip
def test_the_largest_of_sizes(sizes: list[int], limit: int, found: int | None) -> None:
    assert largest(sizes, lambda n: n <= limit) == found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which activations can be kept and computed again; pictures of 48 × 44, 24 rows a batch."""
    import models

    place = tmp_path_factory.mktemp("budget") / "both"
    return onnxft.export(*models.deep(), place, recompute=True, batch_size=24)


KEPT, AGAIN = ({"recompute": word} for word in ("off", "on"))
WHOLE = {"batch_size": 24, "accumulate": 1}
ROW_BY_ROW = {"batch_size": 1, "accumulate": 24}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("asked", "fits", "more", "picked", "words"),
    [
        # Activations are kept as long as any batch that keeps them fits.
        ({}, {**WHOLE, **KEPT}, 0, (24, 1, "off"), "batches of 24 (as asked for), activations kept"),
        ({}, {**WHOLE, **KEPT}, -1, (12, 2, "off"), "2 added up for an update, activations kept"),
        ({}, {**ROW_BY_ROW, **KEPT}, 0, (1, 24, "off"), "24 added up for an update, activations kept"),
        ({}, {**ROW_BY_ROW, **KEPT}, -1, (1, 24, "on"), "activations recomputed (nothing fits that keeps them)"),
        ({}, {**ROW_BY_ROW, **AGAIN}, 0, (1, 24, "on"), "activations recomputed (nothing fits that keeps them)"),
        # What is asked for is not chosen.
        (AGAIN, {**WHOLE, **KEPT}, 0, (24, 1, "on"), "(as asked for), activations recomputed (as asked for)"),
        (AGAIN, {**WHOLE, **AGAIN}, 0, (24, 1, "on"), "activations recomputed (as asked for)"),
        (AGAIN, {**WHOLE, **AGAIN}, -1, (12, 2, "on"), "instead of 24, the most that fits"),
        (KEPT, {**WHOLE, **AGAIN}, 0, (8, 3, "off"), "3 added up for an update, activations kept"),
    ],
)  # fmt: skip
def test_activations_are_recomputed_where_nothing_else_fits(
    asked: dict[str, str], fits: dict[str, Any], more: int, picked: tuple[int, int, str], words: str, both: Path
) -> None:
    limit = needed(both, **fits) + more
    plan = expected(both, memory_budget=f"{limit}B", **asked).fitted()
    assert (plan.config.batch_size, plan.config.accumulate, plan.config.recompute) == picked
    assert words in plan.picked
    estimate = plan.plan("cpu").estimate
    assert estimate is not None
    assert estimate.total <= limit
    again = replace(expected(both), config=plan.config).fitted()
    assert again.config == plan.config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recompute", "least", "words"),
    [
        ("auto", {**ROW_BY_ROW, **AGAIN}, "with recomputed activations and batches of 1 row the run takes"),
        ("on", {**ROW_BY_ROW, **AGAIN}, "with recomputed activations and batches of 1 row the run takes"),
        ("off", {**ROW_BY_ROW, **KEPT}, "is too small: with batches of 1 row the run takes"),
    ],
)
def test_the_least_is_that_of_all_that_may_be_chosen(
    recompute: str, least: dict[str, Any], words: str, both: Path
) -> None:
    size = needed(both, **least)
    with pytest.raises(ConfigError, match=words) as err:
        expected(both, memory_budget=f"{size - 1}B", recompute=recompute).fitted()
    assert f"Give it {size / 1e6:.1f} MB, or " in str(err.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recompute", "words"),
    [("auto", "train less of the model (onnxft export --method last:K)"), ("off", "recompute auto instead of off")],
)
def test_where_a_batch_stays_whole_fewer_activations_are_proposed(recompute: str, words: str, both: Path) -> None:
    changed = replace(read_manifest(both), loss=Loss("model", "loss", scalar=True))
    with pytest.raises(ConfigError, match="which cannot be divided") as err:
        expected(both, changed, memory_budget="60MB", recompute=recompute).fitted()
    assert words in str(err.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("word", "recomputes"), [("auto", True), ("on", True), ("off", False)])
def test_without_a_budget_an_artifact_that_recomputes_does(word: str, recomputes: bool, both: Path) -> None:
    plan = expected(both, recompute=word).plan("cpu")
    assert plan.estimate is not None
    assert plan.estimate.total == needed(both, recompute="on" if recomputes else "off")
    assert plan.picked == ""


@pytest.mark.filterwarnings("ignore")
def test_a_run_tells_and_keeps_what_was_picked(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((48, 1, 48, 44)).astype(np.float32), "labels": np.arange(48) % 3}
    limit = needed(both, **ROW_BY_ROW, **KEPT) - 1
    options = {"epochs": 2, "threads": 1, "metric": "loss", "memory_budget": f"{limit}B"}
    told: list[Any] = []
    whole = loop.run(both, data, options, run_dir=tmp_path / "whole", announce=told.append)
    assert told[0].recomputes
    assert read_yaml(whole.directory / "config.yaml")["recompute"] == "on"
    assert json.loads((whole.directory / "metrics.json").read_bytes())["recomputes"] is True
    assert "activations recomputed" in json.loads((whole.directory / "memory.json").read_bytes())["picked"]
    assert "activations are computed again" in (whole.directory / "train.log").read_text()
    stopped = loop.run(both, data, options, run_dir=tmp_path / "run", progress=StopAfter(3))
    assert stopped.end == "interrupted"
    monkeypatch.setattr(opening, "base_bytes", lambda: 0)  # now a batch that keeps its activations would fit
    for asked in ({"recompute": "off"}, {"recompute": "off", "memory_budget": f"{limit}B"}):
        with pytest.raises(ConfigError, match="begun with recompute on, and --resume cannot go on with recompute off"):
            loop.run(both, data, asked, run_dir=tmp_path / "run", resume=True)
    made = loop.run(both, data, {"recompute": "auto"}, run_dir=tmp_path / "run", resume=True)
    assert made.config.recompute == "on"
    assert (tmp_path / "run" / "results.csv").read_bytes() == (whole.directory / "results.csv").read_bytes()


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1GB"}], ids=str)
def test_an_artifact_that_keeps_all_is_not_recomputed(options: dict[str, str], artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recompute is on, but the artifact 'convnet' .*Export it with --recompute"):
        loop.run(artifact, rows(), {"recompute": "on", **options}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_accumulators_may_take_more_than_a_whole_batch() -> None:
    assert largest([16, 8, 4], lambda n: n == 16) == 16


def test_nothing_that_fits_is_refused_with_the_least_that_would_do(artifact: Path, tmp_path: Path) -> None:
    least = needed(artifact, batch_size=1, accumulate=384)
    with pytest.raises(ConfigError, match=r"memory_budget 40\.0 MB is too small: with batches of 1 row the run") as err:
        loop.run(artifact, rows(), {"memory_budget": "40MB"}, run_dir=tmp_path / "run")
    assert f"Give it {least / 1e6:.1f} MB, or " in str(err.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (lambda m: replace(m, buffers=(Buffer("bn.running_mean", (4,), "float32", "mean", "bn", ("batch",)),)),
         "cannot be divided because BatchNorm 'bn' trains on the statistics of a whole batch"),
        (lambda m: replace(m, loss=Loss("model", "loss", scalar=True)),
         "cannot be divided because the model's loss 'loss' is one number for a whole batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_stays_whole(
    manifest: Callable[[Manifest], Manifest], words: str, artifact: Path
) -> None:
    changed = manifest(read_manifest(artifact))
    half = needed(artifact, batch_size=192, accumulate=2)
    with pytest.raises(ConfigError, match=f"with batches of 384 rows, which {words}"):
        expected(artifact, changed, memory_budget=f"{half}B").fitted()
    whole = expected(artifact, changed, memory_budget="1GB").fitted().config
    assert (whole.batch_size, whole.accumulate) == (384, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": TrainConfig(memory_budget="1GB", provider="openvino")}, "the provider 'openvino' lays out memory"),
        ({"config": TrainConfig(memory_budget="1GB", provider="auto")}, "the provider 'auto' lays out memory"),
        ({"processes": 2}, "several processes train together"),
        ({"data": Stream.__new__(Stream)}, "are made by code"),
    ],
)
def test_where_batches_cannot_be_chosen_a_budget_is_refused(change: dict[str, Any], words: str, artifact: Path) -> None:
    if "data" in change:
        change["data"].source = "f.py:batches"
    with pytest.raises(ConfigError, match=f"memory_budget is 1GB, but .*{words}.* set batch_size and"):
        replace(expected(artifact, memory_budget="1GB"), **change).fitted()


def test_the_updates_of_divided_batches_are_those_of_whole_ones(artifact: Path, tmp_path: Path) -> None:
    limit = needed(artifact, batch_size=96, accumulate=4)
    options = {"epochs": 2, "threads": 1, "lr": 0.01, "metric": "loss"}
    told: list[Any] = []
    whole = loop.run(artifact, rows(), options, run_dir=tmp_path / "whole")
    divided = loop.run(
        artifact, rows(), {**options, "memory_budget": f"{limit}B"}, run_dir=tmp_path / "divided", announce=told.append
    )
    for name, value in load_file(whole.directory / "weights" / "last.safetensors").items():
        other = load_file(divided.directory / "weights" / "last.safetensors")[name]
        np.testing.assert_allclose(other, value, rtol=1e-3, atol=1e-5)
    saved = read_yaml(divided.directory / "config.yaml")
    assert (saved["batch_size"], saved["accumulate"], saved["memory_budget"]) == (96, 4, f"{limit}B")
    (start,) = told
    assert "batches of 96 (instead of 384, the most that fits), the gradients of 4 added up" in start.memory.line
    record = json.loads((divided.directory / "metrics.json").read_bytes())
    assert record["updates"] == 6  # 1000 rows in updates of 384, twice
    memory = json.loads((divided.directory / "memory.json").read_bytes())
    assert memory["estimate"] == sum(memory["parts"].values()) <= memory["budget"] == limit
    log = (divided.directory / "train.log").read_text()
    assert "memory about " in log
    assert "memory peak " in log


def test_a_resumed_run_keeps_what_was_picked(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = needed(artifact, batch_size=96, accumulate=4)
    options = {"epochs": 2, "threads": 1, "lr": 0.01, "metric": "loss", "memory_budget": f"{limit}B"}
    loop.run(artifact, rows(), options, run_dir=tmp_path / "whole")
    stopped = loop.run(artifact, rows(), options, run_dir=tmp_path / "run", progress=StopAfter(6))
    assert stopped.end == "interrupted"
    monkeypatch.setattr(opening, "base_bytes", lambda: 10 * limit)  # another process may hold more
    loop.run(artifact, rows(), {}, run_dir=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"begun with memory_budget .* cannot go on with memory_budget 1GB"):
        loop.run(artifact, rows(), {"memory_budget": "1GB"}, run_dir=tmp_path / "run", resume=True)


def test_the_saved_configuration_picks_the_same_again(artifact: Path, tmp_path: Path) -> None:
    limit = needed(artifact, batch_size=192, accumulate=2)
    first = expected(artifact, memory_budget=f"{limit}B").fitted()
    again = replace(expected(artifact), config=first.config).fitted()
    assert again.config == first.config


def test_features_take_what_the_budget_leaves(artifact: Path) -> None:
    found = expected(artifact, memory_budget=f"{needed(artifact) + 5 * 2**20}B").fitted().config
    assert found.cache_memory == 5
    assert expected(artifact, memory_budget="1GB", cache_memory="7MB").fitted().config.cache_memory == "7MB"


@pytest.mark.parametrize(("cache", "kept"), [("memory", True), ("auto", True), ("off", False)])
def test_kept_features_count(cache: str, kept: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 9, 3), torch.nn.Flatten(), torch.nn.Linear(9 * 22 * 22, 3))
    place = onnxft.export(
        net, torch.zeros(4, 1, 24, 24), tmp_path / "net", trainable=["2.*"], input_names=["image"]
    )  # fmt: skip
    features = ROWS * 9 * 22 * 22 * 4
    plan = expected(place, cache=cache, memory_budget="500MB").fitted().plan("cpu")
    assert plan.estimate is not None
    assert plan.estimate.parts.get("kept features") == (features if kept else None)
    needs = plan.estimate.total
    if cache != "off":
        tight = expected(place, cache=cache, memory_budget=f"{needs - features // 2}B")
        if cache == "auto":  # they go to disk
            estimate = tight.fitted().plan("cpu").estimate
            assert estimate is not None
            assert "kept features" not in estimate.parts
        else:
            with pytest.raises(ConfigError, match="is too small"):
                tight.fitted()
        made = loop.run(
            place, rows(), {"epochs": 1, "metric": "loss", "cache": cache, "memory_budget": f"{2 * needs}B"},
            run_dir=tmp_path / "run",
        )  # fmt: skip
        assert "are kept in memory" in (made.directory / "train.log").read_text()


@pytest.mark.parametrize("value", ["lots", "-1", "1TB"])
def test_a_budget_that_is_no_size_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f"memory_budget is {value}, it must be a size"):
        TrainConfig(memory_budget=value)


def test_the_command_says_what_is_expected_and_what_was(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **rows())
    limit = needed(artifact, batch_size=192, accumulate=2)
    words = [
        str(artifact), "--data", str(tmp_path / "rows.npz"), "--epochs", "1", "--metric", "loss", "--run",
        str(tmp_path / "run"), "--memory-budget", f"{limit}B",
    ]  # fmt: skip
    result = CliRunner().invoke(train_command, words)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("memory ")]
    assert len(lines) == 2
    assert "the budget is " in lines[0]
    assert "batches of 192 (instead of 384" in lines[0]
    assert lines[1].startswith("memory     peak ")
    assert "estimated " in lines[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("words", "recomputes"), [([], True), (["--recompute", "on"], True), (["--recompute", "off"], False),
                              (["--config", "word.yaml"], False)], ids=str,
)  # fmt: skip
def test_the_command_says_what_happens_to_activations(
    words: list[str], recomputes: bool, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((7, 1, 48, 44)).astype(np.float32)
    np.savez("rows.npz", image=images, labels=np.arange(7) % 3)
    Path("word.yaml").write_text("recompute: off\n")
    given = [str(both), "--data", "rows.npz", "--epochs", "1", "--batch-size", "5", "--run", "run", *words]
    result = CliRunner().invoke(train_command, given)
    assert result.exit_code == 0, result.output
    kept = "computed again" if recomputes else "kept"
    assert [line for line in result.stdout.splitlines() if line.startswith("backward ")] == [
        f"backward   activations are {kept}"
    ]
    assert json.loads(Path("run/metrics.json").read_bytes())["recomputes"] == recomputes


def test_what_a_plan_says() -> None:
    assert MemoryPlan(None, "it is so").line == "not estimated: it is so"
    assert MemoryPlan(None, "it is so").outcome(2_000_000) == "peak 2.0 MB"
    assert "does not tell" in MemoryPlan(None, "it is so").outcome(None)
