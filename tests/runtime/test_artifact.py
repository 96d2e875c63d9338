"""An artifact may be somebody else's: every file is checked before the runtime opens any."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from onnxft.errors import ArtifactError
from onnxft.files import sha256
from onnxft.runtime.artifact import load_artifact, weight_bytes
from onnxft.runtime.session import TrainSession


@pytest.fixture
def artifact(exported: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("mlp"), tmp_path / "mlp"))


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite manifest.json after `change`."""

    def damage(artifact: Path) -> None:
        values = json.loads((artifact / "manifest.json").read_text())
        change(values)
        (artifact / "manifest.json").write_text(json.dumps(values))

    return damage


def append(artifact: Path) -> None:
    with (artifact / "train.onnx").open("ab") as file:
        file.write(b"\0")


def soft_link(artifact: Path) -> None:
    (artifact / "train.onnx").rename(artifact.parent / "outside.onnx")
    (artifact / "train.onnx").symlink_to(artifact.parent / "outside.onnx")


def unlisted_link(artifact: Path) -> None:
    """A graph could name it as external data."""
    (artifact.parent / "secret").write_bytes(b"secret")
    (artifact / "weights.bin").symlink_to(artifact.parent / "secret")


def linked_directory(artifact: Path) -> None:
    (artifact.parent / "elsewhere").mkdir()
    (artifact / "data").symlink_to(artifact.parent / "elsewhere", target_is_directory=True)


def other_parameters(artifact: Path) -> None:
    """Another file with its right hash: whole, but not what the manifest describes."""
    save_file({"fc1.weight": np.zeros((2, 3), np.float32)}, artifact / "parameters.safetensors")
    found = sha256(artifact / "parameters.safetensors")
    manifest(lambda m: m["files"].update({"parameters.safetensors": found}))(artifact)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "is not an artifact: the directory does not exist"),
        (lambda a: (a / "manifest.json").unlink(), "is not an artifact: it holds no manifest.json"),
        (append, "train.onnx' does not match its sha256"),
        (lambda a: (a / "frozen.safetensors").unlink(), "frozen.safetensors' is missing"),
        (soft_link, "train.onnx' is a link or no regular file"),
        (lambda a: os.link(a / "update.onnx", a.parent / "second_name"), "update.onnx' is a link"),
        (unlisted_link, "weights.bin' is a link"),
        (linked_directory, "data' is a link"),
        (manifest(lambda m: m.update(schema_version=2)), "schema version 2; this onnxft reads version 1"),
        (manifest(lambda m: m["graphs"]["eval"].update(file="../x")), "graph 'eval' names the file '../x'"),
        (manifest(lambda m: m["files"].update({"../x": "0"})), "the file name '../x' leaves the artifact directory"),
        (manifest(lambda m: m["files"].pop("train.onnx")), "'train.onnx', which has no sha256"),
        (manifest(lambda m: m["files"].pop("parameters.safetensors")), "has no sha256 of parameters.safetensors"),
        (manifest(lambda m: m["graphs"].pop("train")), "has no 'train' graph"),
        (lambda a: (a / "manifest.json").write_text("{\"name\": "), "is not a manifest of onnxft"),
        (other_parameters, "does not hold the tensors of the manifest"),
    ],
)  # fmt: skip
def test_a_damaged_artifact_is_refused(damage: Callable[[Path], Any], words: str, artifact: Path) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError) as err:
        TrainSession(artifact, threads=1)
    assert words in str(err.value)


def test_a_copy_of_an_artifact_is_one(artifact: Path) -> None:
    (artifact / "notes").mkdir()
    (artifact / "notes" / "read_me.txt").write_text("mine", encoding="utf-8")
    assert load_artifact(artifact).name == "mlp"


def test_weights_and_state_are_counted(artifact: Path) -> None:
    values = 7 * 11 + 11 + 11 * 6 + 6 + 6 * 5 + 5
    assert weight_bytes(artifact, load_artifact(artifact)) == {
        "trained parameters": 4 * values,
        "optimizer state": 8 * values,
        "gradients": 4 * values,
        "frozen weights": (artifact / "frozen.safetensors").stat().st_size,
    }
