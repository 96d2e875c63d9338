"""What a user may get wrong with the ort-training generator: one error each, its exit code, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarding import ROWS, export
from torch import nn

from onnxft import ort_training_environment as environment
from onnxft.errors import (
    ArtifactError,
    DataError,
    DivergedError,
    ExitStatus,
    OnnxftError,
    ProviderError,
    SelectionError,
)
from onnxft.files import sha256
from onnxft.manifest_file import read_manifest
from onnxft.runtime.session import TrainSession
from onnxft.training.loop import run

pytestmark = pytest.mark.usefixtures("ort_python")
CLASSES = 3
FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint", "nominal_checkpoint")


class Model(nn.Module):
    """With an integer parameter and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.counts = nn.Parameter(torch.arange(5), requires_grad=False)
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(x)) * self.counts)


X = torch.zeros(ROWS, 4)


# ----- export -----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trainable": ["haed.*"]}, r"the pattern 'haed\.\*' matches no parameter of 'a'\. Known: .*'head\.weight'"),
        ({"trainable": ["head.*"], "frozen": ["*"]}, r"nothing is left to train of 'a' with train=\['head\.\*'\]"),
        ({"trainable": ["counts"]}, "nothing is left to train of 'a'.*counts .its type int64 has no gradient"),
        ({"trainable": ["unused.*"]}, r"nothing is left to train of 'a'.*unused\.\w+ .the model does not read it"),
    ],
)
def test_a_selection_that_trains_nothing_is_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=words) as caught:
        export(Model(), X, tmp_path / "a", **options)
    assert caught.value.exit_status == ExitStatus.MODEL
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_train_is_left_out_of_a_selection_of_all(tmp_path: Path) -> None:
    artifact = export(Model(), X, tmp_path / "a")
    names = [p.name for p in read_manifest(artifact).parameters]
    assert names == ["inner.weight", "inner.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("directory", ["a/b/c", "not yet/ä"])
def test_folders_are_made(directory: str, tmp_path: Path) -> None:
    assert (export(Model(), X, tmp_path / directory) / "checkpoint").is_file()


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.png").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json: it would be deleted"):
        export(Model(), X, tmp_path / "a")
    assert (tmp_path / "a" / "photo.png").read_bytes() == b"mine"


# ----- training -----


@pytest.fixture(scope="module", params=["weighted", "standalone"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Model(), X, tmp_path_factory.mktemp("bad") / "a", standalone=request.param == "standalone")


def good() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2 * ROWS, 4)).astype(np.float32), "labels": rng.integers(0, CLASSES, 2 * ROWS)}


def changed(name: str, value: Any) -> Callable[[], dict[str, np.ndarray]]:
    def make() -> dict[str, np.ndarray]:
        data = good()
        data[name][4] = value
        return data

    return make


def with_array(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
    return lambda: {**good(), name: make(good()["x"])}


def without(name: str) -> Callable[[], dict[str, np.ndarray]]:
    return lambda: {key: array for key, array in good().items() if key != name}


BAD_DATA = {
    "label too large": (changed("labels", 3), DataError, r"'labels' has the value 3 at row 4; classes are 0 to 2"),
    "label below 0": (changed("labels", -1), DataError, r"'labels' has the value -1 at row 4; classes are 0 to 2"),
    "not a number": (changed("x", np.nan), (DataError, DivergedError), r"nan|finite"),
    "infinite": (changed("x", np.inf), (DataError, DivergedError), r"nan|inf|finite"),
    "another width": (with_array("x", lambda x: x[:, :3]), DataError, r"'x'.*3.*4|'x'.*4.*3"),
    "bytes": (with_array("x", lambda x: (x > 0).astype(np.uint8)), DataError, "'x'.*uint8"),
    "a typo": (lambda: {**without("x")(), "X": good()["x"]}, DataError, "'x'|'X'"),
    "no labels": (without("labels"), DataError, "'labels'"),
    "too few rows": (lambda: {n: a[: ROWS - 1] for n, a in good().items()}, DataError, "has 5 rows, fewer than"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_ends_a_run_with_one_error(case: str, artifact: Path, tmp_path: Path) -> None:
    make, error, words = BAD_DATA[case]
    with pytest.raises(error, match=words) as caught:
        run(artifact, make(), {"epochs": 1, "threads": 1}, run_dir=tmp_path / "run")
    assert isinstance(caught.value, OnnxftError)
    assert caught.value.exit_status in (ExitStatus.DATA, ExitStatus.DIVERGED)
    assert not (tmp_path / "run").exists()


def test_after_bad_data_a_session_goes_on(artifact: Path) -> None:
    with TrainSession(artifact, threads=1) as session, TrainSession(artifact, threads=1) as healthy:
        bad = {name: array[:ROWS] for name, array in changed("labels", 3)().items()}
        with pytest.raises(DataError):
            session.step(bad, lr=0.1)
        batch = {name: array[:ROWS] for name, array in good().items()}
        assert session.step(batch, lr=0.1).loss == healthy.step(batch, lr=0.1).loss
        for name, value in healthy.parameters.items():
            np.testing.assert_array_equal(session.parameters[name], value)


# ----- files -----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(Path.unlink, "is missing"), (cut, "does not match its sha256"), (flip, "does not match its sha256")],
    ids=["missing", "truncated", "flipped"],
)
def test_a_damaged_artifact_is_named(
    file: str, damage: Callable[[Path], None], words: str, artifact: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    damage(copy / file)
    with pytest.raises(ArtifactError, match=f"{file}' {words}") as caught:
        TrainSession(copy)
    assert caught.value.exit_status == ExitStatus.ARTIFACT
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", FILES[:4])
def test_a_truncated_file_that_passes_for_whole_is_an_error_and_no_crash(
    file: str, artifact: Path, tmp_path: Path
) -> None:
    """As where the manifest was made with it: then the worker meets it."""
    copy = shutil.copytree(artifact, tmp_path / "copy")
    before = (copy / file).read_bytes()
    cut(copy / file)
    assert (copy / file).read_bytes() != before
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace(sha256(artifact / file), sha256(copy / file)))
    with pytest.raises((ArtifactError, ProviderError)) as caught:
        TrainSession(copy)
    assert "\n" not in str(caught.value)


# ----- the environment -----


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment with onnxruntime-training anywhere."""
    monkeypatch.delenv(environment.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(environment, "_installed", lambda package: False)
    monkeypatch.setattr(environment, "default_place", lambda: tmp_path / "none")


@pytest.mark.usefixtures("absent")
def test_without_the_environment_the_error_has_the_command_that_makes_it(artifact: Path, tmp_path: Path) -> None:
    for use in (lambda: export(Model(), X, tmp_path / "a"), lambda: TrainSession(artifact)):
        with pytest.raises(ProviderError, match="onnxft setup ort-training") as caught:
            use()
        assert caught.value.exit_status == ExitStatus.PROVIDER
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("python", ["no-such-python", "/dev/null"])
def test_an_interpreter_that_is_none_is_named(
    python: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.PYTHON_VARIABLE, python)
    with pytest.raises(ProviderError, match=rf"there is no executable '{python}' \(ONNXFT_ORT_TRAINING_PYTHON\)"):
        TrainSession(artifact)
