"""A configuration may be somebody else's: nothing but plain values is read from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxft.errors import ConfigError
from onnxft.yaml_file import LARGEST, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "must hold a mapping of names, `name: value` lines, not list"),
        ("just words", "not str"),
        ("1: a", "must hold a mapping of names"),
        ("a: [", "is not YAML: expected the node content, but found '<stream end>' (line 1, column 5)"),
        ("a: 1\na: 2", "is not YAML: the key 'a' stands twice (line 1, column 1)"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        (BOMB, "is not YAML: aliases (*name) are not read (line 2, column 8)"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: " + "[" * 5000 + "]" * 5000, "cannot be read"),
        ("a: " + "x" * LARGEST, "has more than 1,048,576 bytes"),
        ("a: \0", "is not YAML"),
    ],
    ids=["list", "text", "number", "broken", "twice", "twice inside", "bomb", "object", "deep", "large", "binary"],
)
def test_what_is_no_configuration_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as err:
        read_yaml(path)
    assert words in str(err.value)
    assert "c.yaml" in str(err.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file '.*c\.yaml'"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(os.urandom(3) + b"\xff\xfe\x80")
    with pytest.raises(ConfigError, match=r"'.*c\.yaml' cannot be read"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "values"), [("", {}), ("# all defaults", {}), ("a: 1\nb: [x, {c: 1.5}]", {"a": 1, "b": ["x", {"c": 1.5}]})]
)
def test_plain_values_are_read(text: str, values: object, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "c.yaml") == values


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("true", True), ("False", False), ("'true'", "true")],
)
def test_only_true_and_false_are_truth_values(text: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"a: {text}", encoding="utf-8")
    assert read_yaml(path) == {"a": value}
