"""The training step that is tried on providers: it is right on the CPU, and what is wrong is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import probe
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.execution import Execution
from onnxft.runtime.needs import Lack, LackError
from onnxft.runtime.providers import PROVIDERS
from onnxft.runtime.session import TrainSession


def test_the_artifact_in_the_package_is_sound_and_small() -> None:
    manifest = load_artifact(probe.ARTIFACT)
    assert manifest.optimizer.kind == "adamw"
    assert manifest.dimensions == {}
    assert sum(file.stat().st_size for file in probe.ARTIFACT.iterdir()) < 300_000
    assert not (probe.ARTIFACT / "cache").exists()


def test_cpu_agrees_with_float64() -> None:
    trained = probe.train_probe(Execution("cpu", threads=1))
    assert 0 < trained.difference < 2e-6
    assert trained.step_ms > 0
    assert trained.placement.obtained == "cpu"


def test_the_artifact_has_graphs_of_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU runs those in float16, so that they are tested without the providers that they are for."""
    assert set(load_artifact(probe.ARTIFACT).half) == {"bfloat16", "float16"}
    entry = replace(PROVIDERS["cpu"], precisions=("float32", "float16"), lowers_by="graph")
    monkeypatch.setitem(PROVIDERS, "cpu", entry)
    assert 1e-5 < probe.train_probe(Execution("cpu", "float16", threads=1)).difference < 2e-3


def test_the_process_writes_a_finding_for_each_precision(tmp_path: Path) -> None:
    assert probe.main("cpu", str(tmp_path / "findings")) == 0
    first, *_ = probe.read_findings(tmp_path / "findings")
    assert (first.precision, first.reason, first.lack) == ("float32", "", None)
    assert probe.read_findings(tmp_path / "none") == []


def scaled(name: str, factor: float) -> Any:
    def gradients(self: TrainSession, batch: Mapping[str, Any]) -> dict[str, Any]:
        sums, weight = self._engine.gradients(self._complete(batch))
        return {n: value / weight * (factor if n == name else 1) for n, value in sums.items()}

    return gradients


def frozen_step(self: TrainSession, batch: Mapping[str, Any], *, lr: float) -> Any:
    """A provider that reads stale parameters: each step sees the first loss."""
    return STEP(self, batch, lr=0)


STEP = TrainSession.step


@pytest.mark.parametrize(
    ("method", "replacement", "words"),
    [
        ("gradients", scaled("conv.weight", 1.001), r"the gradient of 'conv.weight' differs from float64 by 1.0e-03"),
        ("gradients", scaled("head.bias", np.nan), r"the gradient of 'head.bias' differs from float64 by nan"),
        ("step", frozen_step, r"the loss of step 3 differs from float64 by 2.4e-01 relative, where float32 may differ"),
    ],
    ids=["wrong", "nan", "stale"],
)
def test_a_provider_that_computes_wrongly_does_not_work(
    monkeypatch: pytest.MonkeyPatch, method: str, replacement: Any, words: str
) -> None:
    monkeypatch.setattr(TrainSession, method, replacement)
    with pytest.raises(ProviderError, match=words):
        probe.train_probe(Execution("cpu", threads=1))


@pytest.mark.parametrize(
    ("raised", "reason", "lack"),
    [
        (ProviderError("it fails. Do this."), "it fails. Do this.", None),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no kernel\nmore"), "RuntimeError: 1 : FAIL : no kernel.", None),
        (LackError("'cuda' fails", Lack(("no driver",), ("a driver",))), None, Lack(("no driver",), ("a driver",))),
    ],
    ids=["error", "exception", "lack"],
)
def test_what_fails_is_a_finding_and_the_other_precisions_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: Exception, reason: str | None, lack: Lack | None
) -> None:
    def fail(asked: Execution) -> Any:
        raise raised

    monkeypatch.setattr(probe, "train_probe", fail)
    assert probe.main("cpu", str(tmp_path / "findings")) == 0
    (finding,) = probe.read_findings(tmp_path / "findings")
    assert (finding.reason, finding.lack) == (reason or "'cuda' fails: no driver. It needs a driver.", lack)
