"""The table of operators and its place in the README."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from onnxft.grad.registry import supported_ops, without_gradient, without_rule

TOOL = Path(__file__).parents[2] / "tools" / "op_table.py"


@pytest.fixture(scope="module")
def op_table():
    spec = importlib.util.spec_from_file_location("op_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_lists_every_operator_once(op_table):
    table = op_table.table()
    for op_type in [*supported_ops(), *without_gradient(), *without_rule()]:
        assert table.count(f"`{op_type}`") == 1
    assert f"| not yet: {without_rule()['Det']} | `Det` |" in table


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("# onnxft\n", 1, "has no markers"),
        ("a\n<!-- op-table -->\nstale\n<!-- /op-table -->\nb\n", 1, "is stale"),
    ],
)
def test_check_names_what_is_wrong(op_table, tmp_path, capsys, text, code, words):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    assert op_table.main(["--check"], readme) == code
    assert words in capsys.readouterr().err


def test_write_makes_check_pass_and_keeps_the_rest(op_table, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- op-table -->\nstale\n<!-- /op-table -->\nb\n", encoding="utf-8")
    assert op_table.main(["--write"], readme) == 0
    assert op_table.main(["--check"], readme) == 0
    written = readme.read_text(encoding="utf-8")
    assert written.startswith("a\n")
    assert written.endswith("b\n")
    assert "stale" not in written
