"""Row 28 of the reported traps: broadcasting along a symbolic dimension is undone, at no cost of symbolic shapes.

The file has names for batch and sequence, a session has sizes: so what is summed is known when the graph is written,
and how much memory it takes is known when the session opens. Fewer rows than a session's are filled up with rows that
weigh nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import assert_parity
from torch import nn

import onnxft
from onnxft.manifest import BATCH
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.execution import Execution
from onnxft.runtime.native import NativeEngine

WIDTH, CLASSES = 6, 3
# (rows of a session, sequence)
SIZES = [(5, 4), (3, 7), (2, 1), (1, 2)]


class Broadcasting(nn.Module):
    """Each kind of operand that is repeated along batch, sequence or both, and sums that are repeated in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.of_features = nn.Parameter(torch.randn(WIDTH))
        self.of_one_row = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.of_rows = nn.Linear(WIDTH, 1)
        self.number = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x * self.of_features + self.of_one_row)
        gate = torch.sigmoid(self.of_rows(x))  # (rows, sequence, 1)
        whole = (x * gate).mean(1, keepdim=True)  # (rows, 1, width)
        return self.head((self.number * whole + x / (1 + whole.square())).mean(1))


@pytest.fixture(scope="module")
def model() -> Broadcasting:
    torch.manual_seed(3)
    return Broadcasting()


@pytest.fixture(scope="module")
def artifact(model: Broadcasting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = {"x": torch.randn(4, 5, WIDTH)}
    directory = tmp_path_factory.mktemp("symbolic") / "artifact"
    return onnxft.export(model, examples, directory, dynamic_shapes={"x": {1: "sequence"}}, batch_size=4)


def batch_of(rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows * 10 + length)
    x = rng.standard_normal((rows, length, WIDTH)).astype(np.float32)
    return {"x": x, "labels": np.arange(rows) % CLASSES}


def torch_gradients(model: Broadcasting, batch: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    own = Broadcasting().to(dtype)
    own.load_state_dict(model.state_dict())
    own = own.to(dtype)
    nn.functional.cross_entropy(own(torch.tensor(batch["x"]).to(dtype)), torch.tensor(batch["labels"])).backward()
    return {n: p.grad.numpy().astype(np.float64) for n, p in own.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("rows", "length", "missing"), [(r, t, m) for r, t in SIZES for m in (0, 1) if r > m])
def test_gradients_equal_torch_at_every_size(
    rows: int, length: int, missing: int, provider: str, model: Broadcasting, artifact: Path
) -> None:
    batch = batch_of(rows - missing, length)
    expected, float32 = (torch_gradients(model, batch, dtype) for dtype in (torch.float64, torch.float32))
    sizes = {"sequence": length}
    with onnxft.TrainSession(artifact, provider, batch_size=rows, dimensions=sizes, threads=2) as session:
        found = session.gradients(batch)
    assert_parity(f"{rows} rows of length {length} on {provider}", found, expected, float32)


@pytest.mark.parametrize(("rows", "length"), SIZES)
def test_the_file_has_names_and_a_session_has_sizes(rows: int, length: int, artifact: Path) -> None:
    manifest = load_artifact(artifact)
    (port,) = manifest.inputs
    assert port.shape == (BATCH, "sequence", WIDTH)
    engine = NativeEngine(artifact, manifest, Execution(), batch_size=rows, dimensions={"sequence": length})
    shapes = {i.name: i.shape for i in engine._graphs.sessions["train"].session.get_inputs()}
    assert shapes["x"] == [rows, length, WIDTH]
    assert all(isinstance(d, int) for shape in shapes.values() for d in shape)
