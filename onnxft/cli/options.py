"""Options that several commands share."""

from __future__ import annotations

import json
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
        key, equals, number = pair.rpartition("=")
        try:
            values[key] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"'{pair}' is not of the form KEY=NUMBER.")
    return values


def preprocess_option(text: str) -> Callable[[F], F]:
    """`--preprocess KEY=VALUE`, repeatable; the command gets {key: text of the value}."""
    return click.option("--preprocess", multiple=True, metavar="KEY=VALUE", callback=_texts, help=text)


def provider_options_option(command: F) -> F:
    """`--provider-option KEY=VALUE`, repeatable; the command gets {key: text of the value}."""
    return click.option(
        "--provider-option", "provider_options", multiple=True, metavar="KEY=VALUE", callback=_texts,
        help="Option handed to the provider over those of onnxft. Repeatable.",
    )(command)  # fmt: skip


def _texts(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    texts = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"'{pair}' is not of the form KEY=VALUE.")
        texts[key] = value
    return texts


def loss_options(pairs: Sequence[str]) -> dict[str, float | list[float]]:
    """`KEY=NUMBER[,NUMBER...]` options as a dict; click's usage error where one is of another form."""
    values: dict[str, float | list[float]] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            numbers = [float(number) for number in text.strip("[]() ").split(",")]  # a list of a file has brackets
        except ValueError:
            raise click.BadParameter(f"'{pair}' is not of the form KEY=NUMBER or KEY=NUMBER,NUMBER,...") from None
        values[key] = numbers if len(numbers) > 1 else numbers[0]
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


class Words(click.ParamType[list[Any]]):
    """`a,b,c`; in a file a list."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """The words; none of them empty."""
        words = [str(v).strip() for v in value] if isinstance(value, list) else [w.strip() for w in value.split(",")]
        if not all(words):
            self.fail(f"'{value}' holds an empty word.", param, ctx)
        return words


class Sizes(Words):
    """`16,32,64`; in a file a list."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """The numbers."""
        words = super().convert(value, param, ctx)
        if not all(w.isdecimal() for w in words):
            self.fail(f"'{value}' is not of the form N,N,...", param, ctx)
        return [int(w) for w in words]


def input_columns(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=COLUMN[,COLUMN...]`, or columns alone for a model of one input, as {input: columns}."""
    columns: dict[str, list[str]] = {}
    for one in given:
        name, equals, text = one.partition("=")
        text = text if equals else one
        found = json.loads(text) if text.startswith("[") else [c.strip() for c in text.split(",")]
        columns.setdefault(name if equals else "", []).extend(found)
    if any(not c for found in columns.values() for c in found):
        raise click.BadParameter(f"{', '.join(given)}: a column is empty.")
    return columns


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
    from onnxft.yaml_file import read_yaml

    # SOURCE and interpreters name code to run: those come from the command line alone.
    not_here = (param.name, "python", "source")
    known = [p.name for p in ctx.command.params if p.name not in not_here]
    values = {k.replace("-", "_"): v for k, v in read_yaml(path).items()}
    for key in values:
        if key not in known:
            raise ConfigError(f"'{path}' has the unknown option '{key}'.{near(key, (n for n in known if n))}")
    # An option that takes KEY=VALUE may be a mapping in a file, as in the saved configuration of a run.
    values = {k: _pairs(v) if isinstance(v, dict) else v for k, v in values.items() if v not in (None, [])}
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _pairs(values: dict[Any, Any]) -> list[str]:
    # JSON, because a column's name may hold a comma.
    return [f"{a}={json.dumps(b) if isinstance(b, list) else b}" for a, b in values.items()]
