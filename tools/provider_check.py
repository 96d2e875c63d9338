"""Try providers on this machine from end to end, and write what was found as one file.

`python tools/provider_check.py cuda tensorrt` lets the doctor look at the machine, runs the conformance tests on each
provider in each precision, and measures benchmark tasks beside torch. The exit code is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from onnxft.benchmark.report import Report
from onnxft.files import write_atomically
from onnxft.runtime.providers import provider

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "artifacts/evidence"
VERSIONED = ("onnx", "cuda", "cudnn", "tensorrt", "nvidia", "openvino", "torch", "numpy", "transformers")
"""What the names of packages begin with, or hold, that decide a result."""
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")


@dataclass(frozen=True)
class Test:
    """One conformance test."""

    name: str
    result: str
    """passed, failed or skipped"""
    seconds: float
    message: str = ""
    """Why it failed or was skipped."""


@dataclass
class Evidence:
    """All that one check has found."""

    providers: list[str]
    sides: list[str]
    """`provider[:precision]`, as they were tried."""
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    doctor: Any = None
    tests: list[Test] = field(default_factory=list)
    bench: dict[str, Any] = field(default_factory=dict)
    """{task: report}"""
    failures: list[str] = field(default_factory=list)
    """What is wrong, in words; empty where all went well."""


def sides_of(names: Sequence[str]) -> list[str]:
    """Each provider in each of its precisions."""
    found = []
    for entry in map(provider, names):
        found += [entry.name if p == "float32" else f"{entry.name}:{p}" for p in entry.precisions]
    return found


def versions() -> dict[str, str]:
    """{package: version} of what decides a result, and of Python."""
    names = {d.name.lower(): d.version for d in metadata.distributions() if d.name}
    found = {n: v for n, v in sorted(names.items()) if any(word in n for word in VERSIONED)}
    return {"python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """System, processor and GPUs."""
    gpus: list[str] = []
    if shutil.which(GPU_QUERY[0]):
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=60, check=False)
        gpus = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor())
    return {"system": platform.platform(), "processor": processor, "cores": os.cpu_count(), "gpus": gpus}


def diagnose(evidence: Evidence) -> None:
    """The words of the doctor; a provider asked for that does not work is a failure."""
    done = run(["-m", "onnxft", "doctor", "--json"], capture_output=True, text=True)
    try:
        evidence.doctor = json.loads(done.stdout)
    except ValueError:
        evidence.failures.append(f"`onnxft doctor --json` failed with code {done.returncode}: {done.stderr[-500:]}")


def conform(evidence: Evidence, selected: Sequence[str], folder: Path) -> None:
    """Run the conformance tests; each failure, and each side of which no test passed, is noted."""
    report = folder / "tests.xml"
    done = run(
        ["-m", "pytest", "tests/conformance", "-m", "not slow", "-q", f"--junitxml={report}", *selected],
        env={**os.environ, "ONNXFT_TEST_PROVIDERS": ",".join(evidence.sides)},
    )
    if not report.is_file():
        evidence.failures.append(f"the conformance tests did not run: pytest ended with code {done.returncode}")
        return
    evidence.tests = read_tests(report)
    evidence.failures += [f"{t.name}: {_first_line(t.message)}" for t in evidence.tests if t.result == "failed"]
    for side in evidence.sides:
        if not any(t.result == "passed" and belongs(t.name, side) for t in evidence.tests):
            reasons = Counter(_first_line(t.message) for t in evidence.tests if belongs(t.name, side)).most_common(1)
            evidence.failures.append(f"no test passed on {side}{f' ({reasons[0][0]})' if reasons else ''}")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def belongs(test: str, side: str) -> bool:
    """Whether a test has the side among its parameters: `test_x[cuda:float16-mlp]` is of cuda:float16, not of cuda."""
    return side in test.partition("[")[2].rstrip("]").split("-")


def read_tests(report: Path) -> list[Test]:
    """Tests of a report of pytest."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):  # written by our own pytest a moment ago
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        result, message = "passed", ""
        for part in case:
            if part.tag in ("failure", "error", "skipped"):
                result = "skipped" if part.tag == "skipped" else "failed"
                message = part.get("message") or part.text or ""
        found.append(Test(name, result, round(float(case.get("time", 0)), 3), message[:500]))
    return found


def measure(evidence: Evidence, tasks: str, threads: int, folder: Path) -> None:
    """Measure the tasks on all sides beside torch; a side that failed is noted with its reason."""
    sides = [part for side in ("torch", *evidence.sides) for part in ("--side", side)]
    place = folder / "bench"
    done = run(
        ["tools/benchmark_tasks.py", *sides, "--tasks", tasks, "--runs", "1", "--threads", str(threads), "--out",
         str(place)],
    )  # fmt: skip
    for report in sorted(place.glob("*.json")):
        found = Report.from_json(report.read_bytes())
        evidence.bench[report.stem.partition(".")[0]] = msgspec.to_builtins(found)
        evidence.failures += [
            f"benchmark {report.stem}, {row.side.name}: {row.reason}" for row in found.rows if row.reason is not None
        ]
    if done.returncode or not evidence.bench:
        evidence.failures.append(f"tools/benchmark_tasks.py ended with code {done.returncode}")


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this interpreter at the root of the repository."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False, **options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("providers", nargs="+", metavar="PROVIDER")
    parser.add_argument("--tasks", default="cells-*", metavar="GLOB", help="benchmark tasks [cells-*]; '' for none")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="of each side")
    parser.add_argument("--select", metavar="WORDS", help="conformance tests, as pytest -k [all]")
    parser.add_argument("--out", type=Path, default=EVIDENCE, metavar="DIR", help="place of the file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, write, and say what failed."""
    options = parse(arguments)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    evidence = Evidence(options.providers, sides_of(options.providers), date, machine(), versions())
    with tempfile.TemporaryDirectory() as name:
        diagnose(evidence)
        conform(evidence, ("-k", options.select) if options.select else (), Path(name))
        if options.tasks:
            measure(evidence, options.tasks, options.threads, Path(name))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"provider-{'-'.join(options.providers)}-{date}.json"
    write_atomically(file, json.dumps(asdict(evidence), indent=1).encode())
    counts = Counter(test.result for test in evidence.tests)
    print(f"{file}: {', '.join(f'{n} {result}' for result, n in sorted(counts.items()))}, {len(evidence.bench)} tasks")
    for failure in evidence.failures:
        print(f"FAILED {failure}")
    return 1 if evidence.failures else 0


if __name__ == "__main__":
    sys.exit(main())
