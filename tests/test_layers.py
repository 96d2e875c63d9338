"""Who may import whom (the picture of the parts), read from the source files; and the size of the files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "onnxft"

OPEN_TO_ALL = {
    "arrays", "errors", "manifest", "files", "frozen_weights", "manifest_check", "manifest_file", "memory", "merge",
    "named_code", "ort_training_environment", "step_work", "tensor_file", "yaml_file",
}  # fmt: skip
ARROWS = {
    # part: parts that it may import
    "graph": set(),
    "grad": {"graph"},
    "step": {"grad", "graph"},
    "generators": {"step", "grad", "graph"},
    "exporters": {"graph", "runtime"},
    "runtime": set(),
    "data": {"runtime"},
    "training": {"data", "runtime"},
    "benchmark": {"runtime"},
    "plan": {"graph", "step", "generators", "exporters", "data"},
    "api": {"plan", "runtime", "data", "training", "benchmark"},
    "cli": {"api", "plan", "graph", "grad", "runtime", "data", "training", "benchmark"},
}
BUILD_HALF = {"graph", "grad", "step", "generators", "exporters"}
PACKAGES = {
    # package: where it may be imported, as parts or as files
    "torch": {
        "exporters",
        *(f"benchmark/torch_{name}.py" for name in ("adapters", "baseline", "model", "probe")),
    },
    "peft": {"benchmark/torch_adapters.py"},
    "onnxruntime": {"runtime", "generators/ort_training/worker.py"},
    "click": {"cli"},
    "mpi4py": {"runtime/mpi.py"},
    "onnx": BUILD_HALF | {"runtime/ort_training/first_steps.py"},
    "onnx_ir": BUILD_HALF,
    "onnxscript": BUILD_HALF,
}
EXCEPTIONS = {
    # (file, what it imports): the baselines run the user's factory, and export it for onnxruntime-training
    ("benchmark/torch_model.py", "onnxft.exporters.factory"),
    ("benchmark/ort_training_baseline.py", "onnxft.api"),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that is imported, inside functions too, by `importlib.import_module` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "a relative import"
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def wrong_arrows(file: str, source: str) -> list[str]:
    """What `file` (relative to the package) imports against the picture."""
    part = file.split("/")[0].removesuffix(".py")
    wrong = []
    for name in imports(ast.parse(source)):
        first, *rest = name.split(".")
        if first != "onnxft":
            allowed = PACKAGES.get(first)
            if (allowed is not None and not {part, file} & allowed) or first == "a relative import":
                wrong.append(name)
            continue
        # `from onnxft import __version__` imports the package alone, which imports nothing.
        target = rest[0] if rest else "__version__"
        module = ".".join([first, *rest[:2]])
        if target in {"__version__", part, *OPEN_TO_ALL} or target in ARROWS.get(part, set()):
            continue
        if (file, module) not in EXCEPTIONS:
            wrong.append(name)
    return wrong


def files() -> dict[str, Path]:
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_part_of_the_package_is_in_the_picture() -> None:
    parts = {file.split("/")[0].removesuffix(".py") for file in files()}
    assert parts - {"__init__", "__main__"} == {*ARROWS, *OPEN_TO_ALL}


@pytest.mark.parametrize("file", [f for f in files() if f not in ("__init__.py", "__main__.py")])
def test_imports_follow_the_arrows(file: str) -> None:
    assert wrong_arrows(file, files()[file].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("runtime/session.py", "import onnx_ir as ir", ["onnx_ir"]),
        ("runtime/session.py", "from onnxft.graph.forward import Forward", ["onnxft.graph.forward.Forward"]),
        ("training/loop.py", "def f():\n    from onnxft.api import export", ["onnxft.api.export"]),
        ("training/loop.py", "from onnxft import api", ["onnxft.api"]),
        ("training/loop.py", "from onnxft import __version__", []),
        ("graph/io.py", "from onnxft.grad import registry", ["onnxft.grad.registry"]),
        ("graph/io.py", "if 1:\n    import torch.nn", ["torch.nn"]),
        ("step/losses.py", "from onnxft.generators.native import generate", ["onnxft.generators.native.generate"]),
        ("exporters/check.py", "from onnxft.runtime.sessions import open_session", []),
        ("exporters/check.py", "import onnxruntime", ["onnxruntime"]),
        ("generators/ort_training/worker.py", "import onnxruntime", []),
        ("generators/native.py", "import onnxruntime", ["onnxruntime"]),
        ("runtime/providers.py", "importlib.import_module('onnxruntime')", []),
        ("step/build.py", "importlib.import_module('onnxruntime')", ["onnxruntime"]),
        ("api.py", "import click", ["click"]),
        ("files.py", "from onnxft.runtime import engine", ["onnxft.runtime.engine"]),
        ("files.py", "from onnxft.errors import ArtifactError", []),
        ("benchmark/torch_model.py", "import torch\nfrom onnxft.exporters.factory import load_factory", []),
        ("benchmark/run.py", "from onnxft.exporters import factory", ["onnxft.exporters.factory"]),
        ("cli/inspect.py", "import onnx", ["onnx"]),
        ("grad/rules/pooling.py", "from ..registry import vjp", ["a relative import"]),
    ],
)  # fmt: skip
def test_the_walker_finds_planted_faults(file: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(file, source) == wrong


def imported_files(file: str, known: dict[str, Path]) -> set[str]:
    """The files of the package that one of them imports, for types alone and inside functions too."""
    found = set()
    for name in imports(ast.parse(known[file].read_text(encoding="utf-8"))):
        place = "/".join(name.split(".")[1:])
        found |= {f for f in (f"{place}.py", f"{place.rpartition('/')[0]}.py") if f in known}
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    known = files()
    TopologicalSorter({file: imported_files(file, known) for file in known}).prepare()  # CycleError names the circle


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    sources = {
        "runtime/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from onnxft.runtime.b import B",
        "runtime/b.py": "def f():\n    from onnxft import c",
        "c.py": "import onnxft.runtime.a",
        "d.py": "from onnxft.runtime.b import B",
    }
    known = {file: tmp_path / file.replace("/", "_") for file in sources}
    for file, source in sources.items():
        known[file].write_text(source, encoding="utf-8")
    assert imported_files("d.py", known) == {"runtime/b.py"}
    with pytest.raises(CycleError, match=r"runtime/a\.py"):
        TopologicalSorter({file: imported_files(file, known) for file in known}).prepare()


def test_no_file_has_more_than_400_lines() -> None:
    long = {
        file: n for file, path in files().items() if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


HEAVY = ("numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch", "rich", "yaml", "msgspec")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from onnxft.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        f"print('LOADED', *(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert "export" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_the_run_half_needs_no_build_half(digits_artifact: Path) -> None:
    """Opening an artifact and inspecting it, with the packages of the build half made unimportable."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript'): sys.modules[name] = None\n"
        f"from onnxft.cli.inspect import inspect\ninspect([{str(digits_artifact)!r}], standalone_mode=False)\n"
        f"import onnxft\nprint(onnxft.TrainSession({str(digits_artifact)!r}, threads=1).placement.obtained)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.splitlines()[-1] == "cpu"
