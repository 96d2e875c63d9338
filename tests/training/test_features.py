"""Features that are kept: the same run as without, and never those of something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_fake_session import StopAfter

import onnxft
from onnxft.errors import ConfigError, WriteError
from onnxft.training import features, loop
from onnxft.training.progress import Progress

torch = pytest.importorskip("torch", reason="torch, of which the models are, is not installed here")
Arrays = dict[str, np.ndarray]
ROWS = 23


def model(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Flatten(), torch.nn.Linear(80, 3)
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last layer of a small network is trained; 4 rows a batch."""
    return export(tmp_path_factory.mktemp("artifact") / "net")


def export(place: Path, module: Any = None) -> Path:
    example = torch.zeros(4, 2, 6, 7)
    return onnxft.export(module or model(), example, place, trainable=["4.*"], input_names=["image"])


def rows(count: int = ROWS, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((count, 2, 6, 7)).astype(np.float32),
        "labels": rng.integers(0, 3, count),
        "sample_weights": rng.uniform(0.5, 2, count).astype(np.float32),
    }


class Told(Progress):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, note: str) -> None:
        self.lines.append(note)

    @property
    def text(self) -> str:
        return "\n".join(line for line in self.lines if "features" in line)


def train(artifact: Path, place: Path, cache: str = "auto", data: Any = None, **options: Any) -> str:
    """A run in `place`; what it said of features."""
    told = Told()
    resume, val = options.pop("resume", False), options.pop("val", rows(9, seed=1))
    progress = options.pop("progress", told)
    options = {"epochs": 2, "threads": 1, "lr": 0.01, "cache": cache, **options}
    loop.run(
        artifact, rows() if data is None else data, options, val=val, run_dir=place, resume=resume, progress=progress
    )
    return told.text


def outcome(place: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    return (place / "results.csv").read_bytes(), load_file(place / "weights" / "last.safetensors")


def assert_equal(first: Path, second: Path) -> None:
    (table, weights), (other_table, others) = outcome(first), outcome(second)
    assert table == other_table
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name])


@pytest.mark.parametrize("cache", ["memory", "disk", "auto"])
@pytest.mark.parametrize(
    "options",
    [{}, {"val": None}, {"accumulate": 3, "clip_norm": 0.5}, {"split": 0.3, "val": None}, {"balance": True}],
    ids=["val", "train", "accumulate", "split", "balance"],
)
def test_a_run_is_the_same_bit_for_bit(cache: str, options: dict[str, Any], artifact: Path, tmp_path: Path) -> None:
    assert not train(artifact, tmp_path / "off", "off", **options)
    assert "are kept" in train(artifact, tmp_path / "kept", cache, **options)
    assert_equal(tmp_path / "off", tmp_path / "kept")
    assert (tmp_path / "kept" / features.FOLDER).exists() == (cache == "disk")


def test_the_trunk_runs_once_for_each_row(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxft.runtime.native import NativeEngine

    runs = []
    compute = NativeEngine.features
    monkeypatch.setattr(NativeEngine, "features", lambda self, batch: runs.append(1) or compute(self, batch))
    train(artifact, tmp_path / "kept", "memory", epochs=3)
    assert len(runs) == -(-ROWS // 4) + -(-9 // 4)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_interrupted_run_goes_on_bit_for_bit(cache: str, artifact: Path, tmp_path: Path) -> None:
    train(artifact, tmp_path / "whole", cache)
    train(artifact, tmp_path / "stopped", cache, progress=StopAfter(8))
    said = train(artifact, tmp_path / "stopped", cache, resume=True)
    assert ("are read from" if cache == "disk" else "are kept in memory") in said
    assert_equal(tmp_path / "whole", tmp_path / "stopped")


def test_a_resumed_run_may_keep_them_elsewhere(artifact: Path, tmp_path: Path) -> None:
    train(artifact, tmp_path / "whole", "off")
    train(artifact, tmp_path / "stopped", "disk", progress=StopAfter(8))
    train(artifact, tmp_path / "stopped", "off", resume=True)
    assert_equal(tmp_path / "whole", tmp_path / "stopped")


# ----- never those of something else -----


def other_row(data: Arrays) -> Arrays:
    changed = {name: array.copy() for name, array in data.items()}
    changed["image"][-1, 0, 0, 0] += 1e-3
    return changed


@pytest.fixture
def again(artifact: Path, tmp_path: Path) -> Callable[..., str]:
    """Keep features, and then with something changed into the same folder; what the second time said."""

    def again(spoil: Callable[[Path], object] = lambda folder: None, **changed: Any) -> str:
        assert "are kept in" in keep(artifact, tmp_path / "run")
        spoil(tmp_path / "run" / features.FOLDER / "train")
        return keep(changed.pop("artifact", artifact), tmp_path / "run", **changed)

    return again


def keep(artifact: Path, place: Path, **options: Any) -> str:
    """Features alone, computed or found in a folder."""
    from onnxft.data.arrays import ArrayDataset
    from onnxft.training.config import TrainConfig
    from onnxft.training.plan import Plan

    told = Told()
    data = ArrayDataset(options.pop("data", rows()), "the data")
    with onnxft.TrainSession(artifact, threads=1) as session:
        plan = Plan.make(session, data, None, TrainConfig(cache="disk", epochs=1, **options))
        features.keep_features(session, plan, place, told, lambda: False)
    return told.text


def test_the_same_are_found_again(again: Callable[..., str]) -> None:
    assert "are read from" in again()


def other_weight(place: Path) -> Path:
    """The artifact with one frozen weight changed."""
    module = model()
    with torch.no_grad():
        module[0].bias[1] += 1e-3
    return export(place, module)


@pytest.mark.parametrize(
    "change",
    [
        lambda place: {"data": other_row(rows())},
        lambda place: {"preprocess": {"mean": 0.25}},
        lambda place: {"artifact": other_weight(place)},
        lambda place: {"spoil": lambda folder: (folder / "0.npy").unlink()},
        lambda place: {"spoil": lambda folder: (folder / "0.npy").write_bytes((folder / "0.npy").read_bytes()[:-1])},
        lambda place: {"spoil": lambda folder: (folder / "features.json").write_text("{")},
    ],
    ids=["row", "preprocessing", "frozen weight", "missing", "damaged", "record"],
)
def test_whatever_changed_makes_new_ones(
    change: Callable[[Path], dict[str, Any]], again: Callable[..., str], tmp_path: Path
) -> None:
    assert "are kept in" in again(**change(tmp_path / "other"))


# ----- where they cannot be kept -----


def test_augmented_rows_are_not_kept_but_those_evaluated_are(tmp_path: Path, artifact: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow, which reads pictures, is not installed here")
    for part in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                pil.fromarray(np.full((6, 7, 3), 40 * i, np.uint8)).save(tmp_path / part / name / f"{i}.png")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(80, 3))
    place = onnxft.export(module, torch.zeros(4, 3, 6, 7), tmp_path / "art", trainable=["2.*"], input_names=["image"])
    options = {"data": tmp_path / "train", "val": tmp_path / "val", "augment": ["flip"], "preprocess": {"size": [6, 7]}}
    said = train(place, tmp_path / "run", **options)
    assert "features are not kept: the rows are augmented (flip)" in said
    assert "features of 6 rows are kept in memory" in said
    with pytest.raises(ConfigError, match=r"cache is 'disk', but .*augmented"):
        train(place, tmp_path / "other", "disk", **options)


def test_a_whole_model_says_why(tmp_path: Path) -> None:
    place = export(tmp_path / "art", model(0.5))
    assert "are kept in memory" in train(place, tmp_path / "behind")  # the dropout lies behind a product
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), *model())
    place = onnxft.export(module, torch.zeros(4, 2, 6, 7), tmp_path / "b", trainable=["5.*"], input_names=["image"])
    assert "draws random numbers" in train(place, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"cache is 'memory', but features are not kept: the frozen part draws"):
        train(place, tmp_path / "other", "memory")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cache": "memory", "cache_memory": 0}, ConfigError, r"the features of 23 rows have .*Raise cache_memory"),
        ({"cache": "ram"}, ConfigError, r"unknown cache 'ram'"),
        ({"cache": "auto", "cache_memory": -1}, ConfigError, r"cache_memory is -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        train(artifact, tmp_path / "run", **options)


def test_auto_takes_the_disk_beyond_the_budget(artifact: Path, tmp_path: Path) -> None:
    assert f"are kept in {tmp_path / 'run' / features.FOLDER}" in train(artifact, tmp_path / "run", cache_memory=0)


def test_a_full_disk_is_an_error_where_it_is_asked_for_and_else_said(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10**6, 10**6 - 100, 100)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match=r"features of 23 rows have .*free"):
        train(artifact, tmp_path / "disk", "disk")
    said = train(artifact, tmp_path / "auto", cache_memory=0)
    assert "features are not kept" in said
    assert not list((tmp_path / "auto").rglob("*.npy"))


def test_a_disk_that_fills_up_leaves_nothing(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.on_disk.__globals__["np"].lib.format, "write_array_header_1_0", fail)
    with pytest.raises(WriteError, match="No space left on device"):
        train(artifact, tmp_path / "disk", "disk")
    assert "features are not kept" in train(artifact, tmp_path / "auto", cache_memory=0)
    train(artifact, tmp_path / "off", "off")
    assert_equal(tmp_path / "off", tmp_path / "auto")
    assert not list(tmp_path.rglob("*.npy"))
