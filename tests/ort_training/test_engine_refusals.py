"""What the engine of the ort-training generator refuses, and what it says."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxft.errors import ArtifactError, ConfigError, DataError, ProviderError
from onnxft.manifest import FILE_NAME
from onnxft.manifest_file import manifest_json, read_manifest
from onnxft.runtime.engine import Hyper
from onnxft.runtime.execution import Execution
from onnxft.runtime.ort_training.engine import OrtTrainingEngine

MakeEngine = Callable[..., OrtTrainingEngine]
BatchOf = Callable[[str, int], dict[str, np.ndarray]]
OrtArtifact = Callable[..., Path]


@pytest.fixture
def mlp(make_engine: MakeEngine) -> OrtTrainingEngine:
    return make_engine("mlp_adamw")


def hyper_of(engine: OrtTrainingEngine, rate: float, /, **changes: object) -> Hyper:
    decay = engine.manifest.optimizer.weight_decay
    return dataclasses.replace(Hyper({"default": rate}, {"default": decay}, step=1), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": {"default": 0.1}}, "is 0.1, but it was fixed at 0.01"),
        ({"lr": {"default": 0.1, "head": 0.2}}, "one learning rate"),
    ],
)
def test_refused_hyperparameters(
    changes: dict[str, object], words: str, mlp: OrtTrainingEngine, batch_of: BatchOf
) -> None:
    before, batch = mlp.parameters(), batch_of("mlp_adamw", 0)
    hyper = hyper_of(mlp, 0.1, **changes)
    with pytest.raises(ConfigError, match=words):
        mlp.step(batch, hyper)
    mlp.accumulate(batch)
    with pytest.raises(ConfigError, match=words):
        mlp.update(hyper, 6.0)
    for name, value in mlp.parameters().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("form", ["standalone"], indirect=True)
def test_refused_weights_and_rows(mlp: OrtTrainingEngine, batch_of: BatchOf) -> None:
    batch = batch_of("mlp_adamw", 0)
    weighted = {**batch, "sample_weights": np.array([1, 1, 1, 1, 1, 0], np.float32)}
    for call in (mlp.accumulate, mlp.gradients, mlp.evaluate, lambda b: mlp.step(b, hyper_of(mlp, 0.1))):
        with pytest.raises(DataError, match=r"not all 1.*a standalone loss is a mean over the labels"):
            call(weighted)
    with pytest.raises(DataError, match=r"has 5 rows; .* exactly 6"):
        mlp.accumulate({name: array[:5] for name, array in batch.items()})
    ones = {**batch, "sample_weights": np.ones(6, np.float32)}
    assert mlp.accumulate(ones).read() == mlp.accumulate(batch).read()
    assert not mlp.supports_weights


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Execution("openvino"), "provider 'openvino' cannot run this artifact.*run on 'cpu', and on 'cuda'"),
        (Execution("cuda"), "runs on cpu only, not on 'cuda'.*onnxft setup ort-training --cuda"),
        (Execution(options={"arena": "1"}), "takes no provider options, not arena"),
        (Execution(precision="bfloat16"), "run in float32, not in bfloat16"),
        (Execution(device=1), "'cpu' has one device, not a device 1"),
        (Execution(strict=True), "strict asks where each node runs, which onnxruntime-training does not tell"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_refused_requests(asked: Execution, words: str, make_engine: MakeEngine) -> None:
    with pytest.raises(ProviderError, match=words):
        make_engine("mlp_sgd", asked=asked)


@pytest.mark.parametrize("file", ["eval_model.onnx", "optimizer_model.onnx", "training_model.onnx", "checkpoint"])
def test_a_missing_file_is_an_error_and_no_crash(
    file: str, tmp_path: Path, make_engine: MakeEngine, ort_artifact: OrtArtifact
) -> None:
    directory = shutil.copytree(ort_artifact("mlp_sgd"), tmp_path / "artifact")
    (directory / file).unlink()
    with pytest.raises(ArtifactError, match=f"{file}' is missing"):
        make_engine("mlp_sgd", directory)


def test_a_damaged_file_is_one_line(tmp_path: Path, make_engine: MakeEngine, ort_artifact: OrtArtifact) -> None:
    directory = shutil.copytree(ort_artifact("mlp_sgd"), tmp_path / "artifact")
    (directory / "training_model.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ProviderError, match=r"cannot open the artifact 'mlp_sgd'.*Export it again") as caught:
        make_engine("mlp_sgd", directory)
    assert "\n" not in str(caught.value)


def test_placement_names_what_runs(mlp: OrtTrainingEngine) -> None:
    assert (mlp.placement.requested, mlp.placement.obtained) == ("cpu", "cpu")
    assert mlp.placement.versions == {"onnxruntime-training": "1.19.2"}
    assert mlp.batch_size == 6


def test_a_baked_norm_takes_no_other(
    make_engine: MakeEngine, ort_artifact: OrtArtifact, batch_of: BatchOf, tmp_path: Path
) -> None:
    directory = shutil.copytree(ort_artifact("mlp_adamw"), tmp_path / "artifact")
    manifest = read_manifest(directory)
    baked = dataclasses.replace(manifest.optimizer, options={**manifest.optimizer.options, "max_norm": 0.5})
    (directory / FILE_NAME).write_bytes(manifest_json(dataclasses.replace(manifest, optimizer=baked)))
    engine, batch = make_engine("mlp_adamw", directory), batch_of("mlp_adamw", 0)
    with pytest.raises(ConfigError, match=r"max_norm is 2.0, but the optimizer graph clips to 0.5 already"):
        engine.step(batch, hyper_of(engine, 0.1, max_norm=2.0))
    for max_norm in (0.5, math.inf):
        engine.step(batch, hyper_of(engine, 0.1, max_norm=max_norm))


def test_a_manifest_that_disagrees_with_a_graph_is_refused(
    make_engine: MakeEngine, ort_artifact: OrtArtifact, tmp_path: Path
) -> None:
    directory = shutil.copytree(ort_artifact("mlp_sgd"), tmp_path / "artifact")
    text = (directory / FILE_NAME).read_text(encoding="utf-8")
    (directory / FILE_NAME).write_text(text.replace('"logits"', '"scores"'), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"disagree about \['logits', 'scores'\]. Export the artifact again"):
        make_engine("mlp_sgd", directory)
