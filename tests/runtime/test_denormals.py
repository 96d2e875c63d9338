"""Denormal numbers are 0 where that was asked for, and nowhere else. Each case has a process: the state outlives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

COMPUTED = """
import sys
from contextlib import nullcontext
import numpy as np
from onnxft.runtime.denormals import denormals_as_zero
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session
from pathlib import Path
with denormals_as_zero() if sys.argv[2] == "zero" else nullcontext():
    opened = open_session(Path(sys.argv[1]), Execution(threads=2))
x = np.full(100_000, 1e-20, np.float32)
(y,) = opened.session.run(None, {"x": x})
print(np.count_nonzero(y))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("asked", "nonzero"), [("zero", 0), ("kept", 100_000)])
def test_products_below_the_smallest_normal_number(asked: str, nonzero: int, tmp_path: Path) -> None:
    """In all threads: an operator of so many values is divided among them."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [100_000]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "square", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    assert run(COMPUTED, str(tmp_path / "m.onnx"), asked) == str(nonzero)


def test_the_command_takes_them_for_zero(digits_artifact: Path, tmp_path: Path) -> None:
    """What its sessions leave behind tells: the state of the thread."""
    np.savez(tmp_path / "data.npz", image=np.zeros((8, 1, 28, 28), np.float32), labels=np.arange(8, dtype=np.int64))
    code = (
        "import sys, numpy as np\nfrom onnxft.cli.train import train\n"
        "tiny = np.full(3, 1e-20, np.float32)\nassert (tiny * tiny > 0).all()\n"
        "train(sys.argv[1:], standalone_mode=False)\nprint((tiny * tiny).any())"
    )
    arguments = [str(digits_artifact), "--data", str(tmp_path / "data.npz"), "--epochs", "1"]
    assert run(code, *arguments, "--run", str(tmp_path / "run")) == "False"
