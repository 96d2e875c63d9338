"""Parameters whose update takes their rows block by block: the blocks lie within the tensors, and together are them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance_subjects import ROWS, SUBJECTS
from tolerances import tolerance

import onnxft
from onnxft.runtime import graph_runs
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.execution import Execution
from onnxft.runtime.values import ValueRunner, ValueStore
from onnxft.step import row_blocks

Opened = Callable[..., onnxft.TrainSession]
SUBJECT = SUBJECTS["transformer"]
TABLE = "embed.weight"  # (23, 12), which its lookup alone reads
WIDTH = 12
DENSE = "between.0.linear1.weight"  # (20, 12), which the data gradient reads too


@pytest.fixture
def divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifact with parameters in blocks of 5 rows and more."""
    monkeypatch.setattr(row_blocks, "LARGE_BYTES", 20 * 12 * 4)
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 5 * 12 * 4)
    monkeypatch.setattr(row_blocks, "_ALIGNED_ROWS", 5)
    return onnxft.export(
        *SUBJECT.factory(), tmp_path / "divided", loss=SUBJECT.loss, batch_size=ROWS, dropout=False,
    )  # fmt: skip


def everything(session: onnxft.TrainSession) -> dict[str, np.ndarray]:
    return {**session.parameters, **session._engine.state()}


def trained(session: onnxft.TrainSession, max_norm: float = math.inf) -> dict[str, np.ndarray]:
    """Everything after steps, and after updates from two batches."""
    batches = SUBJECT.batches(6)
    for at in (0, 3):
        session.step(batches[at], lr=3e-3, max_norm=max_norm)
        for batch in batches[at + 1 : at + 3]:
            session.accumulate(batch)
        session.update(lr=2e-3, max_norm=max_norm)
    return everything(session)


def test_the_ports_are_blocks(divided: Path) -> None:
    manifest = load_artifact(divided)
    for role in ("train", "update"):
        outputs = manifest.graph(role).outputs
        for name, expected in (
            (TABLE, [(0, 10), (10, 20), (20, 23)]),
            (DENSE, [(0, 5), (5, 10), (10, 15), (15, 20)]),
            ("head.weight", [None]),
        ):
            for slot in (None, "exp_avg", "exp_avg_sq"):
                assert [p.rows for p in outputs if p.parameter == name and p.slot == slot] == expected, (role, slot)
    in_place = {p.parameter: p.in_place for p in manifest.graph("train").named("parameter", "outputs")}
    assert in_place[TABLE]
    assert not in_place[DENSE]
    assert not [p for p in manifest.graph("gradients").outputs if p.rows is not None]


@pytest.mark.parametrize("max_norm", [math.inf, 0.05])
def test_divided_or_not_is_the_same(max_norm: float, execution: Execution, divided: Path, opened: Opened) -> None:
    """Apart from the order in which squares are added up for the norm, and how a provider groups what it computes.

    The gradient of a bias of keys is zero but for rounding, of which Adam makes whole steps.
    """
    with opened(SUBJECT, execution) as session:
        expected = trained(session, max_norm)
    with onnxft.TrainSession(divided, execution.provider, precision=execution.precision, threads=2) as session:
        found = trained(session, max_norm)
    exact = execution.provider == "cpu" and max_norm == math.inf
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = 0.0 if exact else tolerance(execution).values * np.abs(value).max()
        difference = np.abs(found[name] - value)
        if "in_proj_bias" in name and not exact:
            difference[WIDTH : 2 * WIDTH] = 0
        assert difference.max() <= bound, name


def test_both_ways_of_binding_are_the_same(divided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with onnxft.TrainSession(divided, threads=1) as session:
        expected = trained(session)
    monkeypatch.setattr(graph_runs, "BoundStore", ValueStore)
    monkeypatch.setattr(graph_runs, "BoundRunner", ValueRunner)
    with onnxft.TrainSession(divided, threads=1) as session:
        found = trained(session)
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}


@pytest.mark.parametrize("max_norm", [math.inf, 0.05])
def test_updates_on_another_provider_are_the_same(max_norm: float, divided: Path, updates_apart: str) -> None:
    """Bit for bit where the rows of a batch are a power of two."""
    assert ROWS.bit_count() == 1
    with onnxft.TrainSession(divided, threads=1) as session:
        expected = trained(session, max_norm)
    with onnxft.TrainSession(divided, updates_apart, threads=1) as session:
        found = trained(session, max_norm)
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}


def test_what_is_set_is_what_the_blocks_read(divided: Path, tmp_path: Path, execution: Execution) -> None:
    """A checkpoint brings back parameters and state as a whole, in the middle of a run in blocks."""
    first, second = SUBJECT.batches(2)
    with onnxft.TrainSession(divided, execution.provider, precision=execution.precision, threads=2) as session:
        session.step(first, lr=3e-3)
        session.save_checkpoint(tmp_path / "first")
        session.step(second, lr=3e-3)
        expected = everything(session)
        session.step(first, lr=3e-3)
        session.load_checkpoint(tmp_path / "first")
        session.step(second, lr=3e-3)
        found = everything(session)
    assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}
