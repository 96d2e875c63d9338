"""`onnxft doctor`: which providers really run here, and what would make the others run."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Open a real session on every provider and say what works, why not, and how to mend it.

    Exit code 0 if at least the provider cpu works.
    """
    from onnxft.errors import ProviderError
    from onnxft.runtime.doctor import diagnose, inspect_installation

    installation, diagnoses = inspect_installation(), diagnose()
    if as_json:
        import msgspec

        found = {"installation": installation, "providers": diagnoses}
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        for name, version in (installation.versions | installation.runtime_packages).items():
            click.echo(f"{name:<24} {version}")
        click.echo()
        for d in diagnoses:
            click.echo(f"{d.provider:<10} {'works' if d.works else 'does not work'}: {d.message}")
        for problem in installation.problems:
            click.echo(f"\nProblem: {problem}")
    working = [d.provider for d in diagnoses if d.works]
    if "cpu" not in working:
        raise ProviderError("the provider 'cpu' does not work, so nothing will. The reason stands above.")
    if not as_json:
        click.echo(f"\nNext: onnxft bench DIR {' '.join(f'--provider {name}' for name in working)}")
