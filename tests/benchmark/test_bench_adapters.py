"""Baselines of an artifact with adapters: the same adapters from peft, and from onnxruntime-training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxft
from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Request
from onnxft.benchmark.run import bench
from onnxft.errors import ModelError, ProviderError
from onnxft.manifest_file import read_manifest
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession

torch = pytest.importorskip("torch", reason="the baselines are of torch")
peft = pytest.importorskip("peft", reason="peft is not installed here")
torch_adapters = pytest.importorskip("onnxft.benchmark.torch_adapters")
torch_baseline = pytest.importorskip("onnxft.benchmark.torch_baseline")

PYTHON = os.environ.get("ONNXFT_ORT_TRAINING_PYTHON")
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 5, (3, 2), padding=1)
        self.block = nn.ModuleDict({"query": nn.Linear(5, 7), "out": nn.Linear(7, 6, bias=False)})
        self.query = nn.Linear(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, image):
        x = F.relu(self.conv(image)).mean((2, 3))
        x = torch.tanh(self.block["out"](torch.tanh(self.block["query"](x))))
        return self.fc(torch.tanh(self.query(x)))

def make():
    torch.manual_seed(5)
    return Net(), (torch.randn(6, 2, 4, 8),)

def shared():
    net, inputs = make()
    net.other = nn.Linear(5, 7)
    net.other.weight = net.block["query"].weight
    return net, inputs

def without():
    net, inputs = make()
    net.block["query"] = nn.Sequential(nn.Linear(5, 7))
    return net, inputs
"""


def source(folder: Path, factory: str) -> str:
    (folder / "net.py").write_text(SOURCE)
    return f"{folder / 'net.py'}:{factory}"


def export(folder: Path, **options: Any) -> Path:
    return onnxft.export(source(folder, "make"), directory=folder / "artifact", method="lora:2", **options)


def request_for(folder: Path, side: str = "torch", factory: str = "make", scenario: Any = "train") -> Request:
    config = BenchConfig(
        baselines=(side,), source=source(folder, factory), scenario=scenario, warmup_steps=1, min_steps=2, min_seconds=0
    )
    return Request(str(folder / "artifact"), Side(side, "baseline"), config, 6, 1, str(folder / "r"), str(folder / "g"))


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        # beside the adapters the head, and one of two layers whose names end alike
        ({"lora_targets": ["block.query.weight"], "trainable": ["fc.*"], "lora_alpha": 3.0}, 2 * (5 + 7) + 15),
        # a convolution, and the bias of an adapted layer
        ({"lora_targets": ["conv.weight", "query.weight"], "trainable": ["query.bias"]}, 2 * (12 + 5 + 6 + 4) + 4),
    ],
)
def test_torch_trains_the_adapters_of_the_artifact(tmp_path: Path, options: Any, trained: int) -> None:
    artifact = export(tmp_path, **options)
    manifest = read_manifest(artifact)
    assert manifest.num_trainable == trained
    measurement, gradients = torch_baseline.run(request_for(tmp_path))
    batch = random_batch(manifest, 6, seed=0)
    with TrainSession(artifact, threads=1, batch_size=6) as session:
        loss, expected = session.evaluate(batch).loss, session.gradients(batch)
    assert measurement.loss == pytest.approx(loss, rel=1e-5)
    assert set(gradients) == set(expected) == {p.name for p in manifest.parameters}
    for name, g in expected.items():
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-6)
        # With B = 0 nothing reaches A yet.
        assert bool(np.abs(g).max() > 1e-4) is not name.endswith("lora_A")
    # A second reading, with B away from 0, in which scale and A count.
    side = torch_baseline._Training(request_for(tmp_path), torch.device("cpu"))
    rng = np.random.Generator(np.random.Philox(1))
    values = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in manifest.parameters}
    with torch.no_grad():
        for name, parameter in side.parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))
    side._backward()
    with TrainSession(artifact, threads=1, batch_size=6) as session:
        session.set_parameters(values)
        for name, g in session.gradients(batch).items():
            np.testing.assert_allclose(side.parameters[name].grad.numpy(), g, rtol=1e-4, atol=1e-5)


def test_an_inference_has_the_adapters_too(tmp_path: Path) -> None:
    artifact = export(tmp_path, lora_targets=["conv.weight"])
    _, outputs = torch_baseline.run(request_for(tmp_path, scenario="inference"))
    batch = random_batch(read_manifest(artifact), 6, seed=0)
    with TrainSession(artifact, threads=1, batch_size=6) as session:
        (name, expected), *_ = session.predict({"image": batch["image"]}).items()
    np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("shared", "'block.query.weight' is shared (block.query.weight, other.weight)"),
        ("without", "the source has no 'block.query.weight', to which the artifact adds an adapter"),
    ],
)
def test_a_source_that_peft_would_train_otherwise_is_refused(tmp_path: Path, factory: str, words: str) -> None:
    export(tmp_path, lora_targets=["block.query.weight"])
    with pytest.raises(ModelError) as caught:
        torch_baseline.run(request_for(tmp_path, factory=factory))
    assert words in str(caught.value)
    assert "Benchmark the artifact without torch." in str(caught.value)


def test_without_peft_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path, lora_targets=["block.query.weight"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ProviderError, match=r"pip install peft.*--python torch=PATH"):
        torch_baseline.run(request_for(tmp_path))


@pytest.mark.skipif(PYTHON is None, reason="ONNXFT_ORT_TRAINING_PYTHON is not set: no environment to run in")
def test_onnxruntime_training_trains_them_too(tmp_path: Path) -> None:
    artifact = export(tmp_path, lora_targets=["block.query.weight"], trainable=["fc.*"], lora_alpha=3.0)
    config = BenchConfig(
        baselines=("ort-training",), source=source(tmp_path, "make"), python={"ort-training": str(PYTHON)}, threads=1,
        min_steps=2, min_seconds=0,
    )  # fmt: skip
    other, cpu = bench(artifact, config).rows
    assert (other.reason, cpu.reason) == (None, None)
    assert cpu.numerics is not None
    assert set(cpu.numerics.by_parameter) == {p.name for p in read_manifest(artifact).parameters}
    assert cpu.numerics.gradient_difference is not None
    assert cpu.numerics.gradient_difference < 1e-4
