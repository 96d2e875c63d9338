"""Weights that a protobuf file cannot hold lie beside the inference model, in the artifact and when it is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx_models import random, save_mlp
from safetensors.numpy import load_file

import onnxft
from onnxft.errors import ArtifactError
from onnxft.graph import io
from onnxft.manifest_file import read_manifest

BATCH = {"x": random(8, 7), "labels": np.arange(8) % 5}


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a model whose weights are too large for its file."""
    path = save_mlp(tmp_path / "net.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(io, "_PROTOBUF_LIMIT", 400)
        return onnxft.export(path, directory=tmp_path / "made", trainable=["fc2_*"], batch_size=8)


def test_the_artifact_has_the_weights_in_a_file_beside(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert {p.inference.file for p in manifest.parameters if p.inference} == {"infer.onnx.data"}
    assert "infer.onnx.data" in manifest.files
    weights = load_file(artifact / "infer.onnx.data")
    assert set(weights) == {"fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"}
    onnx.checker.check_model(artifact / "infer.onnx", full_check=True)


def test_a_written_model_has_the_new_weights_beside_it_under_its_own_name(artifact: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in artifact.iterdir()}
    with onnxft.TrainSession(artifact, threads=1) as session:
        for _ in range(3):
            session.step(BATCH, lr=0.1)
        expected = session.predict({"x": BATCH["x"]})["y"]
        place = tmp_path / "out" / "tuned model.onnx"
        session.export_model(place)
        session.export_model(tmp_path / "out" / "b.onnx")
        assert sorted(p.name for p in place.parent.iterdir()) == [
            "b.onnx", "b.onnx.data", "tuned model.onnx", "tuned model.onnx.data",
        ]  # fmt: skip
        weights = load_file(place.with_name("tuned model.onnx.data"))
        np.testing.assert_array_equal(weights["fc2_weight"], session.parameters["fc2_weight"])
    place.with_name("b.onnx.data").unlink()  # each refers to its own
    (found,) = ort.InferenceSession(place).run(None, {"x": BATCH["x"]})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert {p.name: p.read_bytes() for p in artifact.iterdir()} == before
    onnx.checker.check_model(place, full_check=True)
    assert onnx.load(place).graph.initializer[0].name in weights


def test_a_place_elsewhere_is_refused(artifact: Path, tmp_path: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    manifest["parameters"][0]["inference"]["file"] = "frozen.safetensors"
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with (
        onnxft.TrainSession(artifact, threads=1) as session,
        pytest.raises(ArtifactError, match="'fc2_weight' has no place in the inference model"),
    ):
        session.export_model(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_with_external_data_is_exported_without_changing_it(tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "net.onnx")
    inside = onnxft.export(path, directory=tmp_path / "inside")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    before = {n: (tmp_path / n).read_bytes() for n in ("net.onnx", "net.bin")}
    outside = onnxft.export(path, directory=tmp_path / "outside")
    assert {n: (tmp_path / n).read_bytes() for n in before} == before
    for name in ("parameters.safetensors", "frozen.safetensors", "infer.onnx"):
        assert (inside / name).read_bytes() == (outside / name).read_bytes(), name
