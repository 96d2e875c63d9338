from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxft import files
from onnxft.cli.bench import bench
from onnxft.errors import ConfigError, ProviderError, WriteError

MakeArtifact = Callable[..., Path]
MakeInterpreter = Callable[[Path, str], str]


def test_flags_override_the_file_and_the_files_are_written(
    tmp_path: Path, fake_artifact: MakeArtifact, fake_interpreter: MakeInterpreter
) -> None:
    artifact = fake_artifact(tmp_path / "artifact")
    python = fake_interpreter(tmp_path / "python", "respond([0.1, 0.2])")
    (tmp_path / "bench.yaml").write_text("providers: [openvino]\nthreads: 1\nlr: 0.5\n")
    out = tmp_path / "out"
    args = [str(artifact), "--provider", "cpu", "--python", f"cpu={python}", "--batch-size", "3"]
    args += ["--config", str(tmp_path / "bench.yaml"), "--json", str(out / "b.json"), "--markdown", str(out / "b.md")]
    result = CliRunner().invoke(bench, args, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"Next: onnxft train {artifact} --data DATA --provider cpu" in result.stdout
    assert "cpu: running (1 of 1)" in result.stderr
    config = json.loads((out / "b.json").read_bytes())["config"]
    assert (config["providers"], config["threads"], config["lr"], config["batch_size"]) == (["cpu"], 1, 0.5, [3])
    assert "| cpu |" in (out / "b.md").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["b.json", "b.md"]


def test_all_sides_failed_after_the_report_was_written(
    tmp_path: Path, fake_artifact: MakeArtifact, fake_interpreter: MakeInterpreter
) -> None:
    artifact = fake_artifact(tmp_path / "artifact")
    python = fake_interpreter(tmp_path / "python", "os.abort()")
    args = [str(artifact), "--python", f"cpu={python}", "--json", str(tmp_path / "b.json")]
    result = CliRunner().invoke(bench, args)
    assert isinstance(result.exception, ProviderError)
    assert "cpu failed: the process was ended by SIGABRT" in " ".join(result.stdout.split())
    assert "SIGABRT" in json.loads((tmp_path / "b.json").read_bytes())["rows"][0]["reason"]
    assert "Next:" not in result.stdout


@pytest.mark.parametrize("flag", ["--json", "--markdown"])
def test_a_crash_while_writing_leaves_the_old_report(
    flag: str,
    tmp_path: Path,
    fake_artifact: MakeArtifact,
    fake_interpreter: MakeInterpreter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = fake_interpreter(tmp_path / "python", "respond([0.1, 0.2])")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report").write_text("the old one")

    def crash(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", crash)
    args = [str(fake_artifact(tmp_path / "artifact")), "--python", f"cpu={python}", flag, str(out / "report")]
    error = CliRunner().invoke(bench, args).exception
    assert isinstance(error, WriteError)
    assert (
        str(error)
        == f"'{out / 'report'}' cannot be written: No space left on device. What was there before is still there."
    )
    assert (out / "report").read_text() == "the old one"
    assert [p.name for p in out.iterdir()] == ["report"]


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--python", "cpu"], "SIDE=PATH"), (["--thread", "2"], "--threads"), ([], "Missing argument")],
)
def test_usage_errors(tmp_path: Path, args: list[str], words: str) -> None:
    result = CliRunner().invoke(bench, [str(tmp_path), *args] if args else [])
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_bad_value_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, [str(tmp_path), "--baseline", "torch"])
    assert isinstance(result.exception, ConfigError)
    assert "--source" in str(result.exception)
