from __future__ import annotations

from pathlib import Path

import pytest

from onnxft.errors import ModelError
from onnxft.exporters.factory import load_factory

SOURCE = """
import helper_beside

NUMBER = 3

def good():
    return helper_beside.VALUE, (1, 2)

def raises():
    raise KeyError("weights")

def nothing():
    return None

def three():
    return 1, 2, 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "source_under_test.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "helper_beside.py").write_text("VALUE = 'module'", encoding="utf-8")
    return tmp_path / "source_under_test.py"


def test_a_factory_of_a_file_may_import_what_lies_beside_it(file: Path) -> None:
    assert load_factory(f"{file}:good") == ("module", (1, 2))


def test_a_factory_of_a_module_in_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    assert load_factory("source_under_test:good") == ("module", (1, 2))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("godo", "has no function 'godo'. Did you mean 'good'?"),
        ("NUMBER", "NUMBER' is no function, but int"),
        ("raises", "raised KeyError: 'weights'"),
        ("nothing", "must return (module, example_inputs), not NoneType"),
        ("three", "must return (module, example_inputs), not tuple"),
    ],
)
def test_a_wrong_factory_is_an_error(name: str, words: str, file: Path) -> None:
    with pytest.raises(ModelError) as err:
        load_factory(f"{file}:{name}")
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("model.py", "'model.py' is not of the form"),
        (":factory", "is not of the form"),
        ("model.py:", "is not of the form"),
        ("no_such_file.py:factory", "the file 'no_such_file.py' does not exist"),
        ("no_such_package.models:factory", "'no_such_package.models' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_wrong_source_is_an_error(source: str, words: str) -> None:
    with pytest.raises(ModelError) as err:
        load_factory(source)
    assert words in str(err.value)


def test_a_file_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "fails_on_import.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be run: ZeroDivisionError: division by zero"):
        load_factory(f"{tmp_path / 'fails_on_import.py'}:factory")
