"""`onnxft bench`: the training step on several providers and against baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Provider to measure; repeatable [cpu].")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME", help="What to compare with: torch.")
@click.option("--source", metavar="SOURCE", help="Model of the torch baseline: module:factory or file.py:factory.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of a batch [the artifact's].")
@click.option("--threads", type=int, metavar="N", help="Threads of every side [all CPUs of this process].")
@click.option("--python", multiple=True, metavar="SIDE=PATH", help="Interpreter of a side in another environment.")
@click.option("--json", "json_file", type=FILE, metavar="F", help="Write the report with all raw times.")
@click.option("--markdown", "markdown_file", type=FILE, metavar="F", help="Write the tables as Markdown.")
@click.option("--fail-under", type=float, metavar="RATIO", help="Fail if a provider is slower than RATIO x reference.")
@click.option("--config", "config_file", type=FILE, metavar="F", help="YAML file of settings; flags override it.")
def bench(
    artifact: Path, python: tuple[str, ...], json_file: Path | None, markdown_file: Path | None,
    config_file: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Measure the training step of the artifact DIR, each side in a process of its own.

    The reference is the first baseline, or the first provider. Exit code 0 unless every side failed or --fail-under
    is not met; a side that fails has its reason in the report.
    """
    from rich.console import Console

    from onnxft.benchmark.config import BenchConfig, read_config_file
    from onnxft.benchmark.run import bench as run_bench
    from onnxft.benchmark.terminal import render
    from onnxft.files import write_atomically

    values = read_config_file(config_file) if config_file else {}
    values |= {key: value for key, value in flags.items() if value not in (None, ())}
    if python:
        values["python"] = dict(_side_and_path(item) for item in python)
    config = BenchConfig.from_mapping(values, str(config_file or "the command line"))
    for file in (json_file, markdown_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    report = run_bench(artifact, config, lambda message: click.echo(message, err=True), keep_logs=json_file)
    Console().print(render(report))
    if json_file is not None:
        write_atomically(json_file, report.to_json())
    if markdown_file is not None:
        write_atomically(markdown_file, report.to_markdown().encode())
    report.check()
    if report.fastest_provider is not None:
        click.echo(f"Next: onnxft train {artifact} --data DATA --provider {report.fastest_provider}")


def _side_and_path(item: str) -> tuple[str, str]:
    side, equals, path = item.partition("=")
    if not (side and equals and path):
        raise click.BadParameter(f"'{item}' is not of the form SIDE=PATH.", param_hint="--python")
    return side, path
