"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxft.errors import ConfigError, near

F = TypeVar("F", bound=Callable[..., Any])


def key_values(pairs: Sequence[str]) -> dict[str, float]:
    """`KEY=NUMBER` options as a dict; click's usage error where one is of another form."""
    values = {}
    for pair in pairs:
        key, equals, number = pair.partition("=")
        try:
            values[key] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"'{pair}' is not of the form KEY=NUMBER.")
    return values


def dimension_option(text: str) -> Callable[[F], F]:
    """`--dimension NAME=SIZE`, repeatable; the command gets {name: size}."""
    return click.option("--dimension", "dimensions", multiple=True, metavar="NAME=SIZE", callback=_sizes, help=text)


def _sizes(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for pair in pairs:
        name, _, size = pair.rpartition("=")
        if not name or not size.isdecimal():
            raise click.BadParameter(f"'{pair}' is not of the form NAME=SIZE.")
        sizes[name] = int(size)
    return sizes


def dynamic_shapes(given: Sequence[str]) -> dict[str, dict[int, str]]:
    """`INPUT:AXIS=NAME` options as {input: {axis: name}}; click's usage error where one is of another form."""
    shapes: dict[str, dict[int, str]] = {}
    for one in given:
        place, _, name = one.rpartition("=")
        source, _, axis = place.rpartition(":")
        if not source or not name or not axis.isdecimal():
            raise click.BadParameter(f"'{one}' is not of the form INPUT:AXIS=NAME.")
        shapes.setdefault(source, {})[int(axis)] = name
    return shapes


def config_option(command: F) -> F:
    """`--config FILE.yaml`: values for the options of the command, which flags override."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        callback=_load_config,
        is_eager=True,
        expose_value=False,
        help="YAML file with values for these options; flags override it.",
    )(command)


def _load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise ConfigError(f"'{path}' is not YAML: {str(err).splitlines()[0]}.") from err
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold a mapping of option names to values.")
    # SOURCE and interpreters name code to run: those come from the command line alone.
    known = [p.name for p in ctx.command.params if isinstance(p, click.Option) and p.name not in (param.name, "python")]
    values = {str(k).replace("-", "_"): v for k, v in values.items()}
    for key in values:
        if key not in known:
            raise ConfigError(f"'{path}' has the unknown option '{key}'.{near(key, (n for n in known if n))}")
    # An option that takes KEY=VALUE may be a mapping in a file, as in the saved configuration of a run.
    values = {k: [f"{a}={b}" for a, b in v.items()] if isinstance(v, dict) else v for k, v in values.items()}
    ctx.default_map = {**(ctx.default_map or {}), **values}
