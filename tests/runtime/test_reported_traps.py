"""Traps that users of other tools reported, by their row: what a provider is given, and what it may leave out."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxft
from onnxft.manifest import BATCH
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session

onnx = pytest.importorskip("onnx", reason="the build half is not installed")


@pytest.fixture(scope="module")
def head_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")
    import models

    folder = tmp_path_factory.mktemp("head") / "mlp"
    return onnxft.export(*models.mlp(), folder, trainable=["fc3.*"], batch_size=6)


@pytest.mark.parametrize("role", ["trunk", "train", "gradients", "eval"])
def test_row_19_frozen_weights_are_initializers_and_only_the_trained_ones_inputs(role: str, head_only: Path) -> None:
    """TensorRT builds an engine around constants; a weight that comes in as an input costs a copy in each run."""
    graph = onnx.load(head_only / f"{role}.onnx", load_external_data=False).graph
    inputs, constants = {i.name for i in graph.input}, {i.name for i in graph.initializer}
    frozen, trained = ("fc1", "fc2"), {"fc3.weight", "fc3.bias"}
    assert inputs & trained == (set() if role == "trunk" else trained)
    assert not {name for name in inputs if name.startswith(frozen)}
    # They may be folded with what stands behind them, never fed; and no graph but the trunk has them.
    sizes = {tuple(i.dims) for i in graph.initializer}
    assert bool({(11, 7), (7, 11)} & sizes) == bool({(6, 11), (11, 6)} & sizes) == (role == "trunk")
    assert not constants & inputs, "an initializer that is an input too is no constant"


def test_row_19_a_session_has_fixed_shapes(head_only: Path) -> None:
    """Each shape would be an engine of its own."""
    opened = open_session(head_only / "train.onnx", Execution(threads=1), dimensions={BATCH: 6})
    for value in (*opened.session.get_inputs(), *opened.session.get_outputs()):
        assert all(isinstance(d, int) for d in value.shape), value.name
