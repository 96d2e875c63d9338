"""What is wrong with the runtime packages of an environment, and how to mend it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import installation, providers
from onnxft.runtime.installation import inspect_installation

INIT, STATE, INFO = (
    "onnxruntime/__init__.py", "onnxruntime/capi/onnxruntime_pybind11_state.so",
    "onnxruntime/capi/build_and_package_info.py",
)  # fmt: skip


def install(site: Path, name: str, version: str, *files: str) -> None:
    """Lay a package down as pip does; its name is in each of its files."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    rows = []
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(f"{name} {version}")
        digest = base64.urlsafe_b64encode(hashlib.sha256((site / file).read_bytes()).digest()).rstrip(b"=").decode()
        rows.append(f"{file},sha256={digest},{(site / file).stat().st_size}\n")
    (info / "RECORD").write_text("".join(rows))


@pytest.mark.parametrize(
    ("packages", "num_problems"),
    [
        ({}, 0),
        ({"onnxruntime": INIT}, 0),
        ({"onnxruntime": INIT, "onnxruntime-ep-openvino": "onnxruntime_ep_openvino/__init__.py"}, 0),
        ({"onnxruntime": INIT, "onnxruntime-gpu": INIT}, 1),
        ({"onnxruntime": INIT, "onnxruntime-training": INIT}, 1),
    ],
)
def test_runtimes_that_overwrite_each_other(tmp_path: Path, packages: dict[str, str], num_problems: int) -> None:
    for name, file in packages.items():
        install(tmp_path, name, "1.30", file, "other/__init__.py")
    found = inspect_installation([str(tmp_path)])
    assert found.runtime_packages == {n: "1.30" for n, f in packages.items() if f == INIT}
    assert len(found.problems) == num_problems
    for problem in found.problems:
        assert f"pip uninstall -y {' '.join(sorted(packages))}" in problem


def test_files_that_another_package_left(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.30", INIT, STATE, INFO)
    assert inspect_installation([str(tmp_path)]).problems == ()
    (tmp_path / STATE).write_text("of another size")
    (tmp_path / INFO).write_text("onnxruntime 1.31")  # of the same size
    (problem,) = inspect_installation([str(tmp_path)]).problems
    words = "build_and_package_info.py of another package or changed"
    assert f"onnxruntime_pybind11_state.so, {words}" in problem
    assert "`pip install --force-reinstall --no-deps onnxruntime==1.30`" in problem
    (tmp_path / STATE).unlink()
    (problem,) = inspect_installation([str(tmp_path)]).problems
    assert f"onnxruntime_pybind11_state.so missing; {words}" in problem


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("onnxruntime", "1.24.0", None),
        ("onnxruntime", "2.0", None),
        ("onnxruntime-training-cpu", "1.19.2", None),
        ("onnxruntime-gpu", "1.9.0", "onnxruntime-gpu 1.9.0 is older than 1.24"),
        ("onnxruntime", "1.23.2", "`pip install -U 'onnxruntime>=1.24'`"),
    ],
)
def test_a_runtime_that_is_too_old(tmp_path: Path, name: str, version: str, words: str | None) -> None:
    install(tmp_path, name, version, INIT)
    problems = inspect_installation([str(tmp_path)]).problems
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]


def test_this_environment_has_no_problem() -> None:
    found = inspect_installation()
    assert found.problems == ()
    assert len(found.runtime_packages) == 1
    assert found.devices[0]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (ImportError("libfoo.so.1: cannot open\nmore"), r"cannot be imported \(libfoo.so.1: cannot open\)"),
        (SimpleNamespace(), "its files are incomplete"),
    ],
    ids=["broken", "empty"],
)
def test_a_runtime_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch, module: Any, words: str) -> None:
    def load(name: str) -> Any:
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(providers.importlib, "import_module", load)
    monkeypatch.setattr(installation, "runtime", providers.runtime.__wrapped__)
    with pytest.raises(ProviderError, match=words) as err:
        providers.runtime.__wrapped__()
    assert inspect_installation().problems == (str(err.value),)
    monkeypatch.setattr(installation, "_runtimes", lambda path: [])
    assert inspect_installation().problems == (
        "no runtime is installed: `pip install onnxft[cpu]`, or another provider's extra.",
    )
