"""Every provider gets a diagnosis, whatever its process does; the command prints it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from onnxft.cli.doctor import doctor as command
from onnxft.cli.doctor_text import diagnosis_lines
from onnxft.errors import ProviderError
from onnxft.runtime import doctor
from onnxft.runtime.engine import Placement
from onnxft.runtime.needs import Lack, Need
from onnxft.runtime.probe import Finding
from onnxft.runtime.providers import PROVIDERS

WORKS = Finding("float32", 0.4, 1e-7, Placement("cpu", "cpu", {"train": {"cpu": 5}}))


def test_every_provider_has_a_diagnosis_and_those_that_fail_say_what_to_do() -> None:
    diagnoses = {d.provider: d for d in doctor.diagnose()}
    assert list(diagnoses) == list(PROVIDERS)
    cpu = diagnoses["cpu"]
    assert (cpu.works, cpu.obtained) == (True, "CPUExecutionProvider")
    assert cpu.step_ms is not None
    assert cpu.step_ms > 0
    assert cpu.precisions[0].difference is not None
    for d in diagnoses.values():
        assert d.works or (d.reasons and d.remedies)


def test_the_probe_runs_in_this_process_too() -> None:
    placement = doctor.open_probe("cpu")
    assert (placement.requested, placement.obtained) == ("cpu", "cpu")
    assert set(placement.nodes) == {"train", "gradients"}


def write(*findings: Finding) -> str:
    """Code of a process that writes findings as the probe does."""
    lines = b"".join(msgspec.json.encode(f) + b"\n" for f in findings)
    return f"import os, sys, time; file = open(sys.argv[1], 'wb', buffering=0); file.write({lines!r}); "


LACK = Lack(("no driver", "no CUDA"), ("a driver", "`pip install x`"), (Need("driver", "580", "none", "no driver"),))


@pytest.mark.parametrize(
    ("code", "works", "reasons", "words"),
    [
        (write(WORKS), True, (), ""),
        ("import os; os.abort()", False, ("the process was ended by SIGABRT",), "another version of its package"),
        (
            "import sys; print('libfoo: bad GPU'); sys.exit(3)", False,
            ("the process ended with exit code 3; its last output: libfoo: bad GPU",), "another version",
        ),
        (
            "import time; time.sleep(60)", False,
            ("no result within 1 s, so it was killed; raise --time-limit",), "another version",
        ),
        ("pass", False, ("no result",), "another version"),
        (write(Finding("float32", reason="it computes wrongly.")), False, ("it computes wrongly",), "another version"),
        (write(Finding("float32", reason="...", lack=LACK)), False, ("no driver", "no CUDA"), "a driver"),
        (write(WORKS) + "file.write(b'{\"precision\": \"bfl')", True, (), ""),
    ],
    ids=["works", "aborts", "fails", "hangs", "silent", "wrong", "lacks", "cut off"],
)  # fmt: skip
def test_whatever_its_process_does_is_the_diagnosis_of_a_provider(
    monkeypatch: pytest.MonkeyPatch, code: str, works: bool, reasons: tuple[str, ...], words: str
) -> None:
    if sys.platform == "win32":
        pytest.skip("signals of POSIX")
    monkeypatch.setattr(doctor, "PROVIDERS", {"cpu": PROVIDERS["cpu"]})
    monkeypatch.setattr(doctor, "_command", lambda name, file: [sys.executable, "-c", code, str(file)])
    (found,) = doctor.diagnose(time_limit=1 if "sleep" in code else 60)
    assert (found.works, found.reasons) == (works, reasons)
    assert any(words in remedy for remedy in found.remedies) or works


def test_a_crash_in_one_precision_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(PROVIDERS["cpu"], precisions=("float32", "bfloat16"))
    monkeypatch.setattr(doctor, "PROVIDERS", {"cpu": entry})
    code = write(WORKS) + "os.abort()"
    monkeypatch.setattr(doctor, "_command", lambda name, file: [sys.executable, "-c", code, str(file)])
    (found,) = doctor.diagnose()
    assert found.works
    assert [(f.precision, f.reason) for f in found.precisions] == [
        ("float32", ""),
        ("bfloat16", "the process was ended by SIGABRT."),
    ]
    assert "    - bfloat16: the process was ended by SIGABRT." in diagnosis_lines(found, 80, "utf-8")


FALLEN = Placement("openvino", "openvino", {"train": {"openvino": 270, "cpu": 7}})
LONG = "/usr/local/cuda-13.0/targets/x86_64-linux/lib"


@pytest.mark.parametrize(
    ("diagnosis", "lines"),
    [
        (
            doctor.Diagnosis(
                "openvino", True, "OpenVINOExecutionProvider", (), 0.5,
                (Finding("float32", 0.5, 1e-7, FALLEN), Finding("bfloat16", 0.25, 1e-3, FALLEN)),
            ),
            [
                "✓ openvino        works: float32 0.50 ms a step, bfloat16 0.25 ms a step; 7 of",
                "                  277 nodes on cpu",
            ],
        ),
        (
            doctor.Diagnosis(
                "cuda", False, reasons=("no driver", "no CUDA 13", "not built"),
                remedies=("a driver", "`pip install 'package-of-a-long-name[with,extras]' another-package`, and run"),
                needs=(
                    Need("NVIDIA driver", "580 or newer", "none", "no driver", "a driver"),
                    Need("CUDA", "13", f"12.4 in {LONG}", "no CUDA 13", "CUDA"),
                ),
            ),
            [
                "✗ cuda            no driver",
                "    not built",
                "    NVIDIA driver  wanted 580 or newer  found none",
                "    CUDA           wanted 13            found 12.4 in",
                f"        {LONG}",
                "    - get a driver",
                "    - `pip install 'package-of-a-long-name[with,extras]' another-package`, and",
                "      run",
            ],
        ),
    ],
    ids=["works", "lacks"],
)  # fmt: skip
def test_what_is_printed_of_a_provider(diagnosis: doctor.Diagnosis, lines: list[str]) -> None:
    assert [click.unstyle(line) for line in diagnosis_lines(diagnosis, 80, "utf-8")] == lines


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command, arguments, catch_exceptions=False, env={"COLUMNS": "80"})


def test_command_prints_one_line_per_provider_and_the_next_command() -> None:
    result = run()
    assert result.exit_code == 0
    for name in PROVIDERS:
        assert sum(line[2:].startswith(f"{name} ") and line[0] in "✓✗" for line in result.stdout.splitlines()) == 1
    assert "Next: onnxft bench DIR --provider cpu" in result.stdout


def test_command_as_json() -> None:
    found = json.loads(run("--json").stdout)
    assert [p["provider"] for p in found["providers"]] == list(PROVIDERS)
    assert found["installation"]["versions"]["numpy"] == np.__version__
    cpu = found["providers"][0]
    assert cpu["works"] is True
    assert cpu["precisions"][0]["step_ms"] == cpu["step_ms"]


def test_command_fails_where_cpu_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = doctor.Diagnosis("cpu", False, reasons=("it crashed",), remedies=("`pip install onnxft[cpu]`",))
    monkeypatch.setattr(doctor, "diagnose", lambda limit: iter([broken]))
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, ProviderError)
    assert "✗ cpu             it crashed\n    - `pip install onnxft[cpu]`" in result.stdout


def test_marks_that_a_terminal_cannot_show() -> None:
    (line,) = diagnosis_lines(doctor.Diagnosis("cpu", True, precisions=(WORKS,)), 80, "ascii")
    assert click.unstyle(line) == "+ cpu             works: float32 0.40 ms a step"
