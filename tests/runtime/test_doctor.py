from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from onnxft.cli.doctor import doctor as command
from onnxft.errors import ProviderError
from onnxft.runtime import doctor
from onnxft.runtime.providers import PROVIDERS, provider


def test_the_probe_is_a_valid_model_of_the_shapes_it_claims() -> None:
    onnx = pytest.importorskip("onnx", reason="the build half is not installed")
    model = onnx.load_from_string(doctor.PROBE_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 18)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def test_cpu_runs_the_probe() -> None:
    placement = doctor.open_probe("cpu")
    assert (placement.requested, placement.obtained) == ("cpu", "cpu")
    assert sum(count for nodes in placement.nodes.values() for count in nodes.values()) in (0, 1)  # 0: runtime < 1.24


def test_every_provider_has_a_diagnosis_and_those_that_fail_say_what_to_do() -> None:
    diagnoses = {d.provider: d for d in doctor.diagnose()}
    assert list(diagnoses) == list(PROVIDERS)
    assert diagnoses["cpu"].works
    assert "CPUExecutionProvider" in diagnoses["cpu"].message
    for d in diagnoses.values():
        assert d.works or "install" in d.message


class FakeSession:
    """A session whose MatMul is off by a factor, or that raises."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.factor is None:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no kernel image\nmore")
        return [feeds["x"] @ feeds["w"] * self.factor]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.001, "does not compute in float32"),
        (float("nan"), "an error of nan"),
        (None, "opens but does not run: 1 : FAIL : no kernel image. Reinstall"),
    ],
)
def test_a_provider_that_loads_but_computes_wrongly_does_not_work(
    monkeypatch: pytest.MonkeyPatch, factor: float | None, words: str
) -> None:
    def open_session(model: bytes, name: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(session=FakeSession(factor), provider=provider(name), nodes={}, options={})

    monkeypatch.setattr(doctor, "open_session", open_session)
    with pytest.raises(ProviderError) as caught:
        doctor.open_probe("cpu")
    assert words in str(caught.value)
    assert not any(d.works for d in doctor.diagnose())


def install(site: Path, name: str, version: str, *files: str) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize(
    ("packages", "num_problems"),
    [
        ({}, 0),
        ({"onnxruntime": "onnxruntime/__init__.py"}, 0),
        (
            {
                "onnxruntime": "onnxruntime/__init__.py",
                "onnxruntime-ep-openvino": "onnxruntime_ep_openvino/__init__.py",
            },
            0,
        ),
        ({"onnxruntime": "onnxruntime/__init__.py", "onnxruntime-gpu": "onnxruntime/__init__.py"}, 1),
    ],
)
def test_runtimes_that_overwrite_each_other(tmp_path: Path, packages: dict[str, str], num_problems: int) -> None:
    for name, file in packages.items():
        install(tmp_path, name, "1.30", file, "other/__init__.py")
    found = doctor.inspect_installation([str(tmp_path)])
    assert found.runtime_packages == {n: "1.30" for n, f in packages.items() if f.startswith("onnxruntime/")}
    assert len(found.problems) == num_problems
    for problem in found.problems:
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem


def test_command_prints_one_line_per_provider_and_the_next_command() -> None:
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    assert result.exit_code == 0
    for name in PROVIDERS:
        assert any(line.startswith(name) for line in result.stdout.splitlines())
    assert "Next: onnxft bench DIR --provider cpu" in result.stdout


def test_command_as_json() -> None:
    result = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [p["provider"] for p in found["providers"]] == list(PROVIDERS)
    assert found["installation"]["versions"]["numpy"] == np.__version__


def test_command_fails_where_cpu_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Diagnosis("cpu", False, "broken")])
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, ProviderError)
    assert "cpu        does not work: broken" in result.stdout
