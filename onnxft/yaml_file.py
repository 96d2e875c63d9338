"""YAML files as mappings, read so that a file from anybody can do no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import yaml

from onnxft.errors import ConfigError

LARGEST = 1 << 20
"""Bytes of a file: more is no configuration."""


_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the package has no types
    """Safe loading without aliases, of which a few lines can name billions of values, and without double keys.

    As in YAML 1.2 only true and false are truth values: on and off are words of our options.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if double := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {double!r} stands twice", node.start_mark)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} of an empty one.

    Raises:
        ConfigError: the file is missing, too large, no YAML, or holds no mapping of names.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"'{path}' has more than {LARGEST:,} bytes: it is no configuration.")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file '{path}'.") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"'{path}' is not YAML: {_reason(err)}.") from err
    except (OSError, ValueError, RecursionError) as err:  # ValueError: other bytes than UTF-8, a date that is none
        raise ConfigError(f"'{path}' cannot be read: {err}.") from err
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"'{path}' must hold a mapping of names, `name: value` lines, not {type(values).__name__}.")
    return values


def _reason(err: yaml.YAMLError) -> str:
    mark, problem = getattr(err, "problem_mark", None), getattr(err, "problem", None)
    if problem is None:
        return str(err).splitlines()[0]
    return problem if mark is None else f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
