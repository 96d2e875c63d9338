"""The environment of onnxruntime-training: where it is looked for, and the command that makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onnxft.errors import ConfigError, OnnxftError, ProviderError, WriteError
from onnxft.ort_training_environment import (
    PYTHON_VARIABLE,
    RECORD,
    default_place,
    find_python,
    interpreter_of,
    read_record,
    requirements,
)
from onnxft.runtime.ort_training.setup import find_base, make_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins for interpreters are shell scripts")

ANY_VERSION = "echo 3 12"
BASE = """#!/bin/sh
# Stands in for an interpreter that the environment is made from.
case "$2" in
  -c) {version};;
  venv) mkdir -p "$3/bin" && cp "{made}" "$3/bin/python";;
esac
"""
MADE = """#!/bin/sh
# Stands in for the interpreter of the environment: pip is played, the rest is what `real` can do.
case "$2" in
  pip) shift 3; echo "Collecting $1"; echo "Installing $2"; {pip};;
  *) exec {real} "$@";;
esac
"""


def stand_in(folder: Path, *, real: str, version: str = ANY_VERSION, pip: str = "exit 0") -> str:
    """The path of a base interpreter."""
    made, base = folder / "made", folder / "base"
    made.write_text(MADE.format(real=real, pip=pip))
    base.write_text(BASE.format(version=version, made=made))
    made.chmod(0o755)
    base.chmod(0o755)
    return str(base)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment but those that a test makes, and no uv."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


# ----- where it is looked for -----


def test_without_one_the_message_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(ProviderError) as caught:
        find_python()
    for words in (str(default_place()), "`onnxft setup ort-training`", PYTHON_VARIABLE):
        assert words in str(caught.value)


def test_the_argument_comes_first_then_the_variable_then_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    default = interpreter_of(default_place())
    default.parent.mkdir(parents=True)
    for file in (first, second, default):
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(second))
    assert (find_python(str(first)), find_python()) == (str(first), str(second))
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ProviderError, match=f"no executable '.*none' .{PYTHON_VARIABLE}.*onnxft setup ort-training"):
        find_python()
    monkeypatch.delenv(PYTHON_VARIABLE)
    for record in ("", "[]", '{"complete": false}'):
        (default_place() / RECORD).write_text(record)
        with pytest.raises(ProviderError, match="there is no environment for it at"):
            find_python()
    (default_place() / RECORD).write_text('{"complete": true}')
    assert find_python() == str(default)


def test_the_extra_installs_the_same() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]["ort-training"]
    assert [line.partition(";")[0] for line in extra] == list(requirements())
    assert requirements(cuda=True) == ("onnxruntime-training==1.19.2", "onnx>=1.16,<1.18")


# ----- which interpreter it is made from -----


@pytest.mark.parametrize(
    ("version", "cuda", "words"),
    [
        ("echo 3 10", False, "is Python 3.10, and the packages .* are built for Python 3.11 or 3.12. Give .* --base"),
        ("echo 3 13", False, "is Python 3.13"),
        ("echo 3 12", True, "is Python 3.12, and the packages .* are built for Python 3.11. Give"),
        ("exit 1", False, "does not run as a Python interpreter"),
        ("echo hello", False, "does not run as a Python interpreter"),
    ],
)
def test_a_base_of_another_version_is_refused(version: str, cuda: bool, words: str, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=words):
        find_base(stand_in(tmp_path, real="false", version=version), cuda=cuda)


def test_a_base_is_looked_for_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = stand_in(tmp_path, real="false", version="exit 1")
    monkeypatch.setattr(sys, "executable", broken)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    shims = [tmp_path / name for name in ("python3.12", "python3.11")]
    Path(broken).rename(shims[0])  # such as one of a version that is not installed
    monkeypatch.setattr(sys, "executable", str(shims[0]))
    shims[1].write_text(BASE.format(version="echo 3 11", made="none"))
    shims[1].chmod(0o755)
    assert find_base() == str(shims[1])
    shims[1].write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ProviderError, match=r"PATH has none of python3.12, python3.11 that runs. Install one, or give"):
        find_base()
    with pytest.raises(ProviderError, match=r"'nowhere' does not run as a Python interpreter"):
        find_base("nowhere")


# ----- making it -----


def test_it_is_made_and_then_left_as_it_is(tmp_path: Path, ort_python: str, said: list[str]) -> None:
    base = stand_in(tmp_path, real=ort_python)
    place = tmp_path / "data" / "new" / "environment"
    make_environment(place, base=base, progress=said.append)
    assert read_record(place) == {"complete": True, "packages": list(requirements()), "base": base}
    assert said[1:5] == [
        f"installing {' and '.join(requirements())} with pip",
        f"  Collecting {requirements()[0]}",
        f"  Installing {requirements()[1]}",
        "generating and training a small network",
    ]
    assert said[5] == "onnxruntime-training 1.19.2 works, on cpu"
    (place / "kept").touch()
    make_environment(place, base="not asked for", progress=said.append)
    assert (place / "kept").exists()
    assert said[6] == f"'{place}' is there already; trying it"


def test_one_that_no_longer_works_is_made_anew(tmp_path: Path, ort_python: str, said: list[str]) -> None:
    place = tmp_path / "environment"
    make_environment(place, base=stand_in(tmp_path, real=ort_python), progress=said.append)
    interpreter_of(place).write_text("#!/bin/sh\nexit 1\n")
    (place / "old").touch()
    make_environment(place, base=str(tmp_path / "base"), progress=said.append)
    assert not (place / "old").exists()
    assert any("it does not work any more, so it is made anew" in line for line in said)


def test_what_a_killed_command_left_is_made_anew(tmp_path: Path, ort_python: str, said: list[str]) -> None:
    place = tmp_path / "environment"
    place.mkdir()
    (place / RECORD).write_text('{"complete": false}')
    (place / "half").touch()
    make_environment(place, base=stand_in(tmp_path, real=ort_python), progress=said.append)
    assert not (place / "half").exists()


@pytest.mark.parametrize(
    ("pip", "real", "words"),
    [
        ("echo ERROR: No matching distribution; exit 1", "false", "cannot be installed .*x86-64.: ERROR: No matching"),
        ("exit 0", sys.executable, "cannot generate graphs: ModuleNotFoundError: No module named 'onnxruntime.tr"),
        ("exit 0", "false", "cannot generate graphs: exit code 1"),
    ],
    ids=["pip fails", "the package is not there", "nothing runs"],
)
def test_nothing_half_made_is_left(pip: str, real: str, words: str, tmp_path: Path, said: list[str]) -> None:
    place = tmp_path / "new" / "environment"
    with pytest.raises(ProviderError, match=words) as caught:
        make_environment(place, base=stand_in(tmp_path, real=real, pip=pip), progress=said.append)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if "Collecting" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_environment(tmp_path / "a" / "b", base=stand_in(tmp_path, real="false"), progress=interrupt)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("contents", "error", "words"),
    [
        ({"thesis.txt": ""}, ConfigError, "exists and is no environment that this command made. Choose another --at"),
        ({"pyvenv.cfg": ""}, ConfigError, "exists and is no environment that this command made"),
        (
            {RECORD: json.dumps({"complete": True, "packages": list(requirements(cuda=True))})},
            ConfigError,
            "is an environment with onnxruntime-training==1.19.2 and .*, not onnxruntime-training-cpu==1.19.2",
        ),
    ],
)
def test_what_stands_there_is_not_replaced(
    contents: dict[str, str], error: type[OnnxftError], words: str, tmp_path: Path, said: list[str]
) -> None:
    place = tmp_path / "environment"
    place.mkdir()
    for name, text in contents.items():
        (place / name).write_text(text)
    with pytest.raises(error, match=words):
        make_environment(place, base=stand_in(tmp_path, real="false"), progress=said.append)
    assert {file.name: file.read_text() for file in place.iterdir()} == contents
    assert said == []


def test_a_file_in_the_way_is_an_error(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"environment' cannot be written: Not a directory"):
        make_environment(tmp_path / "file" / "environment", base=stand_in(tmp_path, real="false"), progress=said.append)


def test_uv_installs_where_it_is(
    tmp_path: Path, ort_python: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uv, place = tmp_path / "bin" / "uv", tmp_path / "environment"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{uv.parent}:/usr/bin:/bin")
    make_environment(place, base=stand_in(tmp_path, real=ort_python, pip="exit 1"), progress=said.append)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["pip", "install", "--python", str(interpreter_of(place)), *requirements()]


def test_the_command_has_the_exit_code_of_its_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxft", "setup", "ort-training", "--at", str(tmp_path / "new")]
    done = subprocess.run([*command, "--base", "false"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("Error: 'false' does not run as a Python interpreter")
    assert not (tmp_path / "new").exists()
