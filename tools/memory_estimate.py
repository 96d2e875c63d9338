"""The memory that tasks of the benchmark are estimated to take, against what a process measures, as a table.

`python tools/memory_estimate.py --out artifacts/evidence/memory-estimate.md` exports the tasks of `benchmark_tasks.py`
and trains each in processes of their own, which have neither torch nor onnx: steps alone, as the benchmark does, and
whole runs with evaluation and checkpoints. It ends with 1 where an estimate is further off than the limit. The machine
need not be quiet. Linux alone tells the peak of a process.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onnxft.manifest_file import read_manifest

LIMIT = 0.2
"""By which an estimate may be off."""
STEPS = 6
ROWS_OF_A_RUN = 96


@dataclass(frozen=True)
class Case:
    """What a process does."""

    what: str
    """`steps` or `run`"""
    batch_size: int
    accumulate: int = 1


CASES = (Case("steps", 16), Case("steps", 4), Case("run", 16), Case("run", 4, 4))


@dataclass(frozen=True)
class Line:
    """What came of a task and a case; bytes."""

    task: str
    case: Case
    estimate: int
    measured: int

    @property
    def ratio(self) -> float:
        """Estimate / measured."""
        return self.estimate / self.measured


def steps(artifact: Path, case: Case) -> dict[str, int]:
    """Train some steps in this process."""
    from onnxft.runtime.memory_estimate import MemoryModel, Use
    from onnxft.runtime.random_batch import random_batch
    from onnxft.runtime.session import TrainSession
    from onnxft.runtime.sizes import combined

    manifest = read_manifest(artifact)
    sizes = combined(manifest, case.batch_size, {})
    estimate = MemoryModel(artifact, manifest).estimate(sizes, Use(recompute=manifest.recomputes()))
    with TrainSession(artifact, threads=2, batch_size=case.batch_size) as session:
        batch = random_batch(manifest, case.batch_size, 0)
        for _ in range(STEPS):
            session.step(batch, lr=1e-4)
        return {"estimate": estimate.total, "measured": session.peak_bytes or 0}


def run(artifact: Path, case: Case) -> dict[str, int]:
    """Train two epochs in this process, and read the summary of the run."""
    from onnxft.runtime.random_batch import random_batch
    from onnxft.training.loop import run as train

    data = random_batch(read_manifest(artifact), ROWS_OF_A_RUN, 0)
    config = {"epochs": 2, "threads": 2, "lr": 1e-4, "metric": "loss", "batch_size": case.batch_size}
    with TemporaryDirectory() as folder:
        made = train(artifact, data, {**config, "accumulate": case.accumulate}, run_dir=Path(folder) / "run")
        memory: dict[str, int] = json.loads((made.directory / "memory.json").read_bytes())
        return memory


def measured(task: str, artifact: Path, case: Case) -> Line:
    """A case in a process of its own."""
    words = [
        sys.executable,
        __file__,
        "--measure",
        str(artifact),
        case.what,
        str(case.batch_size),
        str(case.accumulate),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task}, {case}: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Line(task, case, found["estimate"], found["measured"])


def table(lines: Iterable[Line]) -> str:
    """Markdown, MB of a million bytes."""
    rows = ["| task | process | batch | estimate MB | measured MB | ratio |", "|---|---|---:|---:|---:|---:|"]
    for line in lines:
        size = f"{line.case.batch_size}" + (f" × {line.case.accumulate}" if line.case.accumulate > 1 else "")
        rows.append(
            f"| `{line.task}` | {line.case.what} | {size} | {line.estimate / 1e6:,.0f} | {line.measured / 1e6:,.0f} | "
            f"{line.ratio:.2f} |"
        )
    return "\n".join(rows)


def page(lines: Sequence[Line]) -> str:
    """The table with what it is."""
    import onnxruntime

    worst = max(lines, key=lambda line: abs(line.ratio - 1))
    return f"""# Memory: estimated and measured

Peak resident memory of a process without torch and onnx, on cpu with 2 threads, against the estimate that it made
before the session opened. `steps`: {STEPS} steps with AdamW. `run`: `onnxft.train`, two epochs of {ROWS_OF_A_RUN} rows
with evaluation and checkpoints; `4 × 4` accumulates four batches. Written by `python tools/memory_estimate.py`, with
onnxruntime {onnxruntime.__version__} on {platform.system()} {platform.machine()}.

{table(lines)}

Furthest off: `{worst.task}`, {worst.case.what}, batch {worst.case.batch_size}, {worst.ratio:.2f}.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default="*", metavar="GLOB", help="[all]")
    parser.add_argument("--artifacts", type=Path, default=Path("runs/memory-estimate"), metavar="DIR")
    parser.add_argument("--keep", action="store_true", help="use artifacts that an earlier call exported")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown besides what is printed [none]")
    parser.add_argument("--measure", nargs=4, metavar=("DIR", "WHAT", "ROWS", "ACCUMULATE"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def artifacts(options: Any) -> dict[str, Path]:
    """{task: its artifact}, exported where need be."""
    from benchmark_tasks import CACHED, chosen, tell

    from onnxft.manifest import FILE_NAME

    found = {}
    # A cached task has the artifact of the task that it is named after.
    for task in (task for task in chosen(options.tasks) if not task.name.endswith(CACHED)):
        found[task.name] = options.artifacts / task.name
        if not (options.keep and (found[task.name] / FILE_NAME).is_file()):
            tell(f"{task.name}: ", "exporting")
            task.export(found[task.name])
    return found


def main() -> None:
    """Measure all, print the table and write it."""
    options = parse()
    if options.measure:
        place, what, rows, accumulate = options.measure
        print(json.dumps({"steps": steps, "run": run}[what](Path(place), Case(what, int(rows), int(accumulate)))))
        return
    lines = []
    for task, artifact in artifacts(options).items():
        for case in CASES:
            lines.append(measured(task, artifact, case))
            print(table(lines[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    text = page(lines)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    if any(abs(line.ratio - 1) > LIMIT for line in lines):
        raise SystemExit(f"an estimate is off by more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
