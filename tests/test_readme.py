"""The commands and the Python of README run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the README's commands export a torch model")

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(12, 9)
        self.classifier = nn.Linear(9, 3)
    def forward(self, image):
        return self.classifier(torch.relu(self.features(image)))

def factory():
    torch.manual_seed(0)
    return Net(), torch.zeros(8, 12)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    for name, rows in (("train", 40), ("val", 20)):
        images = rng.standard_normal((rows, 12)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", image=images, labels=images[:, :3].argmax(1))
    return tmp_path


def test_the_commands_run(place: Path) -> None:
    (block,) = [b for b in blocks("sh") if "onnxft export" in b]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        assert command[0] == "onnxft"
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=place, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (place / "runs/cells-1/model.onnx").exists()


def test_the_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxft

    monkeypatch.chdir(place)
    scope: dict[str, object] = {"onnxft": onnxft}
    exec(MODEL, scope)  # the README's own setting
    scope["model"], scope["example_inputs"] = scope["factory"]()  # type: ignore[operator]
    data = np.load("train.npz")
    scope["x"], scope["y"] = data["image"][:8], data["labels"][:8]
    (block,) = blocks("python")
    exec(block, scope)
    assert (place / "model.onnx").exists()
    assert np.isfinite(scope["result"].loss)  # type: ignore[attr-defined]


def test_the_sessions_named_exist() -> None:
    noxfile = (Path(__file__).parents[1] / "noxfile.py").read_text(encoding="utf-8")
    named = re.findall(r"nox -s (\w+)", README)
    assert named == ["demo", "tests", "provider"]
    assert all(f"def {name}(" in noxfile for name in named)
