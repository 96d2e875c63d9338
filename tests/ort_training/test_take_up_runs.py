"""A run of one generator that goes on with an artifact of the other: numbers, records, refusals; weights across."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from training_fake_session import StopAfter

from onnxft.cli.train import train
from onnxft.errors import ArtifactError, ConfigError
from onnxft.training.loop import Run, run
from onnxft.training.records import read_position
from onnxft.yaml_file import read_yaml

NATIVE, ORT = "native", "ort-training"
BOTH_WAYS = [(NATIVE, ORT), (ORT, NATIVE)]
EPOCHS, UPDATES_OF_EPOCH = 4, 5
OPTIONS = {
    "epochs": EPOCHS, "lr": 0.02, "threads": 1, "schedule": "onecycle", "accumulate": 2, "clip_norm": 0.5, "seed": 3,
}  # fmt: skip
Exported = Callable[..., Path]


def rows(count: int, seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 7)).astype(np.float32)
    return {"x": x, "labels": (x @ np.random.default_rng(9).normal(size=(7, 3))).argmax(axis=1)}


TRAIN, VAL = rows(150, 0), rows(60, 1)
"""Ten batches of 16 an epoch, the last one short."""


def begin(artifact: Path, directory: Path, **options: Any) -> Run:
    stop = options.pop("stop", None)
    return run(
        artifact,
        TRAIN,
        {**OPTIONS, **options},
        val=VAL,
        run_dir=directory,
        progress=None if stop is None else StopAfter(stop),
    )


def resume(artifact: Path | None, directory: Path, **options: Any) -> Run:
    stop = options.pop("stop", None)
    said = options.pop("said", [])
    return run(
        artifact, TRAIN, options, val=VAL, run_dir=directory, resume=True,
        progress=None if stop is None else StopAfter(stop), announce=said.append,
    )  # fmt: skip


def results(directory: Path) -> list[dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(directory: Path) -> dict[str, str]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def artifacts(exported: Exported) -> dict[str, Path]:
    """With Dropout, so that the masks of both must be the same too."""
    return {g: exported("dropped", generator=g) for g in (NATIVE, ORT)}


@pytest.fixture(scope="module")
def whole(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that are never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return {g: begin(artifact, folder / g) for g, artifact in artifacts.items()}


def assert_close(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert len(found) == len(expected) == EPOCHS + 1
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert (row[name] == "") == (other[name] == "")
            if row[name]:
                assert float(row[name]) == pytest.approx(float(other[name]), rel=2e-4, abs=2e-4), (name, row, other)


def test_whole_runs_of_both_are_the_same(whole: dict[str, Run]) -> None:
    assert_close(*(results(run.directory) for run in whole.values()))
    parameters = [load_file(run.directory / "weights" / "last.safetensors") for run in whole.values()]
    for name, value in parameters[0].items():
        np.testing.assert_allclose(parameters[1][name], value, atol=2e-4)


# In the middle of an epoch, at its end, in the first one, and before the first update of the second.
@pytest.mark.parametrize("update", [2, UPDATES_OF_EPOCH, 8, 13])
@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_a_run_goes_on_with_the_other_generator(
    first: str, second: str, update: int, artifacts: dict[str, Path], whole: dict[str, Run], tmp_path: Path
) -> None:
    stopped = begin(artifacts[first], tmp_path / "run", stop=update)
    assert stopped.end == "interrupted"
    before, said = results(stopped.directory), []
    ended = resume(artifacts[second], stopped.directory, said=said)
    assert ended.end == "complete"
    assert results(stopped.directory)[: len(before)] == before
    assert_close(results(stopped.directory), results(whole[first].directory))
    epoch, made = divmod(update, UPDATES_OF_EPOCH)
    words = f"update {update + 1} on: 'dropped' of the generator '{second}', before it 'dropped' of '{first}'"
    assert said[0].taken_up == words
    assert words in (stopped.directory / "train.log").read_text()
    stages = [
        {"artifact": "dropped", "generator": first, "epoch": 0, "batch": 0, "step": 0},
        {"artifact": "dropped", "generator": second, "epoch": epoch, "batch": 2 * made, "step": update},
    ]
    if not made:  # the interrupt came after the last batch of an epoch, which is not evaluated yet
        stages[1] |= {"epoch": epoch - 1, "batch": 2 * UPDATES_OF_EPOCH}
    assert json.loads((stopped.directory / "metrics.json").read_text())["artifacts"] == stages
    assert read_position(stopped.directory).history == stages
    assert read_yaml(stopped.directory / "config.yaml")["artifact"] == str(artifacts[second])


def test_a_run_changes_its_generator_twice(artifacts: dict[str, Path], whole: dict[str, Run], tmp_path: Path) -> None:
    directory = begin(artifacts[NATIVE], tmp_path / "run", stop=3).directory
    resume(artifacts[ORT], directory, stop=4)
    resume(None, directory, stop=2)  # with the artifact that it has now
    resume(artifacts[NATIVE], directory)
    assert_close(results(directory), results(whole[NATIVE].directory))
    assert [(s.generator, s.step) for s in read_position(directory).stages] == [(NATIVE, 0), (ORT, 3), (NATIVE, 9)]


def test_what_runs_the_graphs_may_be_otherwise_then(artifacts: dict[str, Path], tmp_path: Path) -> None:
    directory = begin(artifacts[NATIVE], tmp_path / "run", stop=3).directory
    with pytest.raises(ConfigError, match="threads 1, and --resume cannot go on with threads 2"):
        resume(artifacts[NATIVE], directory, threads=2)
    with pytest.raises(ConfigError, match="seed 3, and --resume cannot go on with seed 4"):
        resume(artifacts[ORT], directory, seed=4)
    assert resume(artifacts[ORT], directory, threads=2).config.threads == 2


def other_rows(exported: Exported) -> Path:
    return exported("dropped", generator=ORT, batch_size=8)


def other_decay(exported: Exported) -> Path:
    return exported("dropped", generator=ORT, weight_decay=0.5)


@pytest.mark.parametrize(
    ("options", "other", "words"),
    [
        ({}, other_rows, r"has batch 16, and the artifact 'dropped' makes it 8: batches would be others.*--weights"),
        ({}, other_decay, r"weight decays {'default': 0\.01}, the artifact has {'default': 0\.5}"),
        ({"ema": 0.9}, None, r"ema is 0\.9, but the artifact 'dropped' has no graph for averages"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_go_on_is_left_as_it_is(
    options: dict[str, Any],
    other: Callable[[Exported], Path] | None,
    words: str,
    artifacts: dict[str, Path],
    exported: Exported,
    tmp_path: Path,
) -> None:
    directory = begin(artifacts[NATIVE], tmp_path / "run", stop=7, **options).directory
    before = contents(directory)
    with pytest.raises((ArtifactError, ConfigError), match=words):
        resume(artifacts[ORT] if other is None else other(exported), directory)
    assert contents(directory) == before
    assert resume(artifacts[NATIVE], directory).end == "complete"


def test_another_artifact_of_the_same_generator_is_still_refused(
    artifacts: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    directory = begin(artifacts[ORT], tmp_path / "run", stop=3).directory
    with pytest.raises(ArtifactError, match="begun with other contents of 'artifact'"):
        resume(other_decay(exported), directory)


def test_the_command_says_that_it_took_up(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for name, data in (("train", TRAIN), ("val", VAL)):
        np.savez(tmp_path / f"{name}.npz", **data)
    given = ["--data", str(tmp_path / "train.npz"), "--val", str(tmp_path / "val.npz"), "--run", str(tmp_path / "run")]
    begun = CliRunner().invoke(train, [str(artifacts[NATIVE]), *given, "--epochs", "1", "--threads", "1"])
    assert begun.exit_code == 0, begun.output
    more = [str(artifacts[ORT]), "--resume", "--run", str(tmp_path / "run"), "--epochs", "2"]
    resumed = CliRunner().invoke(train, more)
    assert resumed.exit_code == 0, resumed.output
    assert "taken up   update 11 on: 'dropped' of the generator 'ort-training', before it 'dropped'" in resumed.output


# ----- weights alone -----


@pytest.mark.parametrize(("first", "second"), BOTH_WAYS)
def test_weights_of_the_other_generator_begin_a_run(
    first: str, second: str, artifacts: dict[str, Path], whole: dict[str, Run], tmp_path: Path
) -> None:
    begun = begin(artifacts[second], tmp_path / "run", weights=str(whole[first].directory), epochs=1)
    for name, value in whole[first].after.items():
        assert begun.before[name] == pytest.approx(value, rel=1e-5), name
    assert read_position(begun.directory).history == [
        {"artifact": "dropped", "generator": second, "epoch": 0, "batch": 0, "step": 0}
    ]


def test_weights_with_running_statistics_are_refused_by_name(exported: Exported, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(32, 2, 9, 8)).astype(np.float32)
    data = {"image": image, "labels": np.arange(32) % 4}
    trained = exported("normed", train_batchnorm=("bn1",))
    first = run(trained, data, {"epochs": 1, "threads": 1}, run_dir=tmp_path / "first")
    with pytest.raises(ArtifactError, match=r"'bn1\.running_mean' is not trained in 'normed' and would be lost"):
        run(
            exported("normed", generator=ORT), data, {"epochs": 1, "threads": 1, "weights": str(first.directory)},
            run_dir=tmp_path / "second",
        )  # fmt: skip
    assert not (tmp_path / "second").exists()
