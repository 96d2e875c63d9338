"""Gradients of embeddings on every provider: trap S1 and row 17 of the reported ones.

`ScatterND` that adds loses additions on the CPU provider with several threads, and TensorRT refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance_subjects import SUBJECTS
from test_gradient_parity import torch_gradients
from tolerances import tolerance

import onnxft
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.execution import Execution

import torch  # isort: skip

REPEATS = 20


@pytest.mark.parametrize("name", ["embedding", "transformer"])
def test_no_graph_adds_by_scatter_nd(name: str, artifact_of: Callable[..., Path]) -> None:
    for file in artifact_of(SUBJECTS[name]).glob("*.onnx"):
        nodes = onnx.load(file, load_external_data=False).graph.node
        adding = [n for n in nodes if n.op_type == "ScatterND" and any(a.name == "reduction" for a in n.attribute)]
        assert not adding, file.name


def test_a_table_is_written_in_place(artifact_of: Callable[..., Path]) -> None:
    """Only the lookup reads it, which is over before: no second table lies beside it."""
    manifest = load_artifact(artifact_of(SUBJECTS["embedding"]))
    parameters = {p.parameter: p.in_place for p in manifest.graph("train").named("parameter", "outputs")}
    assert parameters["embed.weight"]
    assert not parameters["head.weight"]  # the data gradient reads it too


def test_no_addition_is_lost_where_indices_repeat(
    execution: Execution, opened: Callable[..., onnxft.TrainSession]
) -> None:
    """240 tokens of 7 words on two threads, twenty times: the same bits each time, and torch's numbers."""
    subject = SUBJECTS["embedding"]
    (batch,) = subject.batches(1)
    expected = torch_gradients(subject, batch, torch.float64)["embed.weight"]
    with opened(subject, execution) as session:
        found = [session.gradients(batch)["embed.weight"] for _ in range(REPEATS)]
        fallback = session.placement.fallback
    print(f"on other providers: {fallback}")
    assert len({g.tobytes() for g in found}) == 1
    error = np.linalg.norm(found[0] - expected) / np.linalg.norm(expected)
    assert error <= tolerance(execution).gradients
