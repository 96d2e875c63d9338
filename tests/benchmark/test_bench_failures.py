"""The command on a real artifact, with sides that crash, hang or lack something: every row is there and explained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxft.benchmark.worker import _failure
from onnxft.errors import ConfigError
from onnxft.ort_training_environment import PYTHON_VARIABLE
from onnxft.runtime.needs import Lack, LackError

pytest.importorskip("torch", reason="the baselines need torch")

SOURCE = """
import os, pathlib, time

def first_aborts_then_hangs():
    seen = pathlib.Path(__file__).with_name("seen")
    if not seen.exists():
        seen.touch()
        os.abort()
    while True:
        time.sleep(1)
"""
GOOD = "respond([0.1, 0.2])"
WITHOUT_TORCH = """
sys.modules["torch"] = None
from onnxft.benchmark.worker import main
sys.exit(main(sys.argv[-1]))
"""


@pytest.fixture
def command(tmp_path: Path, digits_artifact: Path, fake_interpreter: Callable[[Path, str], str]) -> Any:
    """onnxft bench with arguments, and interpreters played by scripts -> (exit code, rows, output)."""

    def command(*arguments: str, **scripts: str) -> tuple[int, list[dict[str, Any]], str]:
        (tmp_path / "bad.py").write_text(SOURCE)
        (tmp_path / "bench.yaml").write_text("min_seconds: 0\n")
        python = [f"--python={s}={fake_interpreter(tmp_path / f'python_{s}', b)}" for s, b in scripts.items()]
        files = ["--json", str(tmp_path / "out" / "b.json"), "--config", str(tmp_path / "bench.yaml")]
        words = [sys.executable, "-m", "onnxft", "bench", str(digits_artifact), *arguments, *python, *files]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
        report = tmp_path / "out" / "b.json"
        rows = json.loads(report.read_bytes())["rows"] if report.exists() else []
        return done.returncode, rows, done.stdout + done.stderr

    return command


def test_a_side_that_aborts_and_one_that_never_returns_have_explained_rows(command: Any, tmp_path: Path) -> None:
    code, rows, output = command(
        "--baseline", "torch", "--baseline", "torch-compile", "--source", "bad.py:first_aborts_then_hangs",
        "--provider", "cpu", "--time-limit", "10", cpu=GOOD,
    )  # fmt: skip
    assert code == 0, output
    aborted, hung, cpu = rows
    assert aborted["reason"] == "the process was ended by SIGABRT"
    assert hung["reason"] == "no result within 10 s, so it was killed; raise 'time_limit_seconds'"
    assert cpu["reason"] is None
    assert cpu["summary"]["count"] == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.json", "b.torch-compile.log", "b.torch.log"]


def test_what_an_environment_lacks_is_said(command: Any, digits_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/ort-python")
    code, rows, output = command(
        "--baseline", "torch", "--baseline", "ort-training", "--source", digits_source, "--provider", "cpu",
        "--python", "cpu=/nowhere/python", torch=WITHOUT_TORCH,
    )  # fmt: skip
    torch, ort_training, cpu = (row["reason"] for row in rows)
    assert "needs PyTorch, which is not installed here" in torch
    assert "--python torch=PATH" in torch
    assert f"there is no executable '/nowhere/ort-python' ({PYTHON_VARIABLE})" in ort_training
    assert "`onnxft setup ort-training`" in ort_training
    assert "'/nowhere/python' cannot be started (No such file or directory)" in cpu
    assert "--python cpu=PATH" in cpu
    assert code == 5, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--provider", "opnvino"], "there is no provider 'opnvino'. Did you mean 'openvino'?"),
        (["--baseline", "pytorch", "--source", "m:f"], "there is no baseline 'pytorch'. Did you mean 'torch'"),
        (["--baseline", "torch"], "--source"),
        (["--time-limit", "-1"], "must exceed"),
    ],
)
def test_contradictions_end_the_command_before_anything_runs(command: Any, arguments: list[str], words: str) -> None:
    code, rows, output = command(*arguments)
    assert (code, rows) == (9, [])
    assert words in " ".join(output.split())
    assert "running" not in output


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), "MemoryError", "out of memory. Benchmark a smaller batch."),
        (
            MemoryError("Unable to allocate 9 TiB"),
            "MemoryError",
            "Unable to allocate 9 TiB. Benchmark a smaller batch.",
        ),
        (RuntimeError("\n\nfirst\nsecond"), "RuntimeError", "first"),
        (ConfigError("one\n  two."), "ConfigError", "one two."),
        (LackError("cuda", Lack(("no GPU",), ("one",))), "ProviderError", "cuda: no GPU. It needs one."),
    ],
)
def test_the_reason_is_one_line_under_a_name_that_users_know(error: Exception, kind: str, message: str) -> None:
    failure = _failure(error)
    assert (failure.kind, failure.message) == (kind, message)
