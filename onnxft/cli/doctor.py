"""`onnxft doctor`: which providers really run here, and what would make the others run."""

from __future__ import annotations

import shutil
import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Seconds that a provider may take [60, TensorRT 300].",
)  # fmt: skip
def doctor(as_json: bool, time_limit: float | None) -> None:
    """Make a real training step on every provider and say what works, why not, and what would make it work.

    The step is that of a small network, on one thread; its losses and gradients are compared with exact ones. Each
    provider is tried in a process of its own. Exit code 0 if at least the provider cpu works.
    """
    from onnxft.cli.doctor_text import diagnosis_lines, installation_lines, problem_lines
    from onnxft.errors import ProviderError
    from onnxft.runtime.doctor import diagnose
    from onnxft.runtime.installation import inspect_installation

    installation = inspect_installation()
    width = max(60, min(100, shutil.get_terminal_size().columns))
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    if not as_json:
        for line in [*installation_lines(installation, width), ""]:
            click.echo(line)
    diagnoses = []
    for d in diagnose(time_limit):
        diagnoses.append(d)
        if not as_json:
            for line in diagnosis_lines(d, width, encoding):
                click.echo(line)
    if as_json:
        import msgspec

        found = {"installation": installation, "providers": diagnoses}
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        for problem in installation.problems:
            click.echo()
            for line in problem_lines(problem, width):
                click.echo(line)
    working = [d.provider for d in diagnoses if d.works]
    if "cpu" not in working:
        raise ProviderError("the provider 'cpu' does not work, so nothing will. The reason stands above.")
    if not as_json:
        click.echo(f"\nNext: onnxft bench DIR {' '.join(f'--provider {name}' for name in working)}")
