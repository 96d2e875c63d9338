"""`onnxft bench`: the step of an artifact on several providers and against baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxft.cli.options import Sizes

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--provider", "providers", multiple=True, metavar="NAME[:PRECISION]",
    help="Provider to measure, such as openvino:bfloat16; repeatable [cpu].",
)  # fmt: skip
@click.option(
    "--baseline", "baselines", multiple=True, metavar="NAME[:PRECISION]",
    help="What to compare with: torch, torch-compile (both :bfloat16 too), ort-training; repeatable.",
)  # fmt: skip
@click.option("--source", metavar="SOURCE", help="Model of the baselines: module:factory or file.py:factory.")
@click.option(
    "--scenario", type=click.Choice(["train", "cached", "inference"]),
    help="What a step is; cached: training on features of the frozen part, computed once [train].",
)  # fmt: skip
@click.option(
    "--batch-size", type=Sizes(), metavar="N,...", help="Rows of a batch; several are swept [the artifact's]."
)
@click.option("--threads", type=Sizes(), metavar="N,...", help="Threads of every side, likewise [all CPUs].")
@click.option("--profile", is_flag=True, default=None, help="Take the time per operator too, in further steps.")
@click.option("--repeats", type=int, metavar="N", help="Times that all sides are run in turn [1].")
@click.option("--time-limit", "time_limit_seconds", type=float, metavar="S", help="A longer side is killed [600].")
@click.option("--device", type=int, metavar="N", help="Index among the devices of GPU and NPU providers [0].")
@click.option(
    "--provider-option", "provider_options", multiple=True, metavar="PROVIDER.KEY=VALUE",
    help="Option handed to a provider over those of onnxft; repeatable.",
)  # fmt: skip
@click.option("--strict", is_flag=True, default=None, help="A side fails where nodes run on another provider.")
@click.option("--python", multiple=True, metavar="SIDE=PATH", help="Interpreter of a side in another environment.")
@click.option("--json", "json_file", type=FILE, metavar="F", help="Write the report with all raw times.")
@click.option("--markdown", "markdown_file", type=FILE, metavar="F", help="Write the tables as Markdown.")
@click.option("--html", "html_file", type=FILE, metavar="F", help="Write tables and plots as one HTML page.")
@click.option("--fail-under", type=float, metavar="RATIO", help="Fail if a provider is slower than RATIO x reference.")
@click.option("--config", "config_file", type=FILE, metavar="F", help="YAML file of settings; flags override it.")
def bench(
    artifact: Path, python: tuple[str, ...], provider_options: tuple[str, ...], json_file: Path | None,
    markdown_file: Path | None, html_file: Path | None, config_file: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Measure the step of the artifact DIR on every side, each in a process of its own, one after the other.

    The reference is the first baseline, or the first provider, at every batch size and number of threads. A baseline
    runs the same batch, trained parameters and optimizer, on the GPU where a provider is cuda or TensorRT and torch
    has it; ort-training needs the environment that `onnxft setup ort-training` makes, or --python ort-training=PATH.
    Exit code 0 unless every side failed or --fail-under is not met; a side that fails has its reason in the report.
    """
    from onnxft.benchmark import html, markdown
    from onnxft.benchmark.config import BenchConfig, read_config_file
    from onnxft.benchmark.run import bench as run_bench
    from onnxft.benchmark.terminal import show
    from onnxft.files import write_atomically

    values = read_config_file(config_file) if config_file else {}
    values |= {key: value for key, value in flags.items() if value not in (None, ())}
    if python:
        values["python"] = dict(_side_and_path(item) for item in python)
    for item in provider_options:
        name, key, value = _provider_option(item)
        values.setdefault("provider_options", {}).setdefault(name, {})[key] = value
    config = BenchConfig.from_mapping(values, str(config_file or "the command line"))
    if html_file is not None:
        html.check()
    for file in (json_file, markdown_file, html_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    report = run_bench(artifact, config, lambda message: click.echo(message, err=True), keep_logs=json_file)
    show(report)
    if json_file is not None:
        write_atomically(json_file, report.to_json())
    if markdown_file is not None:
        write_atomically(markdown_file, markdown.render(report).encode())
    if html_file is not None:
        write_atomically(html_file, html.render(report).encode())
    report.check()
    if report.fastest_provider is not None and config.trains:
        name, _, precision = report.fastest_provider.partition(":")
        flag = f" --precision {precision}" if precision else ""
        click.echo(f"Next: onnxft train {artifact} --data DATA --provider {name}{flag}")


def _provider_option(item: str) -> tuple[str, str, str]:
    place, equals, value = item.partition("=")
    provider, dot, key = place.partition(".")
    if not (provider and dot and key and equals):
        raise click.BadParameter(f"'{item}' is not of the form PROVIDER.KEY=VALUE.", param_hint="--provider-option")
    return provider, key, value


def _side_and_path(item: str) -> tuple[str, str]:
    side, equals, path = item.partition("=")
    if not (side and equals and path):
        raise click.BadParameter(f"'{item}' is not of the form SIDE=PATH.", param_hint="--python")
    return side, path
