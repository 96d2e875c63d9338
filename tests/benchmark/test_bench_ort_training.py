"""The baseline of onnxruntime-training: what is generated for it, and in its environment the measurement."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft import export
from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Request
from onnxft.benchmark.run import bench
from onnxft.errors import ConfigError, ModelError, ProviderError
from onnxft.manifest import FILE_NAME, Loss, Optimizer, ParameterGroup
from onnxft.manifest_file import manifest_json, read_manifest
from onnxft.memory import peak_resident_bytes

pytest.importorskip("torch", reason="the generator exports a torch model")
baseline = pytest.importorskip("onnxft.benchmark.ort_training_baseline")

PYTHON = os.environ.get("ONNXFT_ORT_TRAINING_PYTHON")
SOURCE = f"{Path(__file__).parents[1] / 'models.py'}:mlp"


@pytest.fixture(scope="module")
def artifact(exported: Callable[..., Path]) -> Path:
    return exported("mlp", optimizer="adamw")


def request_for(artifact: Path, python: str = sys.executable, batch_size: int = 16) -> Request:
    config = BenchConfig(baselines=("ort-training",), source=SOURCE, python={"ort-training": python})
    return Request(str(artifact), Side("ort-training", "baseline"), config, batch_size, 1, "", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": Loss("mse", "output")}, "other loss"),
        ({"optimizer": Optimizer("sgd")}, "other optimizer"),
        ({"parameters": ()}, "other parameters (fc1.bias, fc1.weight, fc2.bias"),
    ],
)
def test_work_that_would_differ_is_refused(artifact: Path, changes: dict[str, Any], words: str) -> None:
    manifest = read_manifest(artifact)
    baseline.check_same_work(manifest, manifest)
    with pytest.raises(ModelError) as caught:
        baseline.check_same_work(replace(manifest, **changes), manifest)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"parameter_groups": (ParameterGroup("default", 0.5),)}, ConfigError, "one learning rate and one decay"),
        ({"optimizer": Optimizer("lion")}, ConfigError, "no optimizer 'lion'"),
        ({"optimizer": Optimizer("sgd", {"momentum": 0.9})}, ConfigError, "sgd has momentum = 0.9"),
        ({}, ProviderError, "--python ort-training=PATH"),  # this interpreter does not have it
    ],
)
def test_what_it_cannot_express_is_the_reason(
    artifact: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / FILE_NAME).write_bytes(manifest_json(replace(read_manifest(artifact), **changes)))
    with pytest.raises(error) as caught:
        baseline.generate(request_for(copy), tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(PYTHON is None, reason="ONNXFT_ORT_TRAINING_PYTHON is not set: no environment to run in")
@pytest.mark.parametrize("scenario", ["train", "inference"])
def test_it_computes_what_the_provider_does(artifact: Path, scenario: Any) -> None:
    config = BenchConfig(
        baselines=("ort-training",), source=SOURCE, python={"ort-training": str(PYTHON)}, scenario=scenario,
        batch_size=(16, 5), threads=1, min_seconds=0,
    )  # fmt: skip
    report = bench(artifact, config)
    assert [row.reason for row in report.rows] == [None] * 4
    for row in report.rows:
        assert row.measurement is not None
        if row.side.kind == "baseline":
            assert row.measurement.versions["onnxruntime-training"] == "1.19.2"
            assert row.measurement.fallback_nodes is None
            assert row.measurement.peak_rss_bytes is not None
            continue
        assert row.numerics is not None and row.numerics.reference == "ort-training"
        assert row.numerics.loss_difference is not None and row.numerics.loss_difference < 1e-5
        assert row.numerics.gradient_difference is not None and row.numerics.gradient_difference < 1e-4
        compared = {"output"} if scenario == "inference" else {p.name for p in read_manifest(artifact).parameters}
        assert set(row.numerics.by_parameter) == compared
    assert np.isfinite([row.ratio.value for row in report.rows if row.ratio]).all()
    assert json.loads(report.to_json())["reference"] == "ort-training"


@pytest.mark.skipif(PYTHON is None, reason="ONNXFT_ORT_TRAINING_PYTHON is not set: no environment to run in")
def test_an_artifact_of_the_other_generator_is_measured(tmp_path: Path) -> None:
    directory = export(SOURCE, directory=tmp_path / "mlp", generator="ort-training", batch_size=4)
    report = bench(directory, BenchConfig(batch_size=(4, 6), threads=1, min_seconds=0))
    for row in report.rows:
        assert row.reason is None and row.measurement is not None
        assert row.measurement.versions["onnxruntime-training"] == "1.19.2"
        # The memory is that of the worker process, which imports neither this package nor the current runtime.
        assert row.measurement.peak_rss_bytes is not None and row.measurement.peak_rss_bytes < peak_resident_bytes()
