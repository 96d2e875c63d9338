"""Time per operator: from made-up events, from a real session, and from torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxft.benchmark.exchange import OperatorTime
from onnxft.benchmark.profile import SKIPPED_RUNS, operator_times, session_operators
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession


def node(op: str, ts: int, dur: int, provider: str = "CPUExecutionProvider", tid: int = 1) -> dict[str, Any]:
    args = {"op_name": op, "provider": provider}
    return {"cat": "Node", "name": f"n{ts}_kernel_time", "ts": ts, "dur": dur, "tid": tid, "args": args}


def run(ts: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 90, "tid": 1, "args": {}}


SKIPPED = [run(100 * i) for i in range(SKIPPED_RUNS)] + [node("MatMul", 5, 50)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], []),
        ([node("MatMul", 5, 50)], []),
        (SKIPPED, []),
        # what lies before the third run does not count
        ([*SKIPPED, run(1000), node("MatMul", 1000, 30), node("Add", 1030, 10), node("MatMul", 1040, 20)],
         [("MatMul", "cpu", 2, 50e-6), ("Add", "cpu", 1, 10e-6)]),
        # two runs: a mean
        ([*SKIPPED, run(1000), node("Add", 1000, 30), run(2000), node("Add", 2000, 10)], [("Add", "cpu", 1, 20e-6)]),
        # the order in the file is not that of time
        ([node("Add", 1000, 30), run(1000), *reversed(SKIPPED)], [("Add", "cpu", 1, 30e-6)]),
        # the same operator on two providers; an unknown one keeps its name
        ([*SKIPPED, run(1000), node("Add", 1000, 5, "OpenVINOExecutionProvider"),
          node("Add", 1010, 9, "OtherProvider")],
         [("Add", "OtherProvider", 1, 9e-6), ("Add", "openvino", 1, 5e-6)]),
        # a Scan is without what it runs, however deep
        ([*SKIPPED, run(1000), node("Scan", 1000, 100), node("Tanh", 1010, 20), node("Scan", 1040, 30),
          node("Mul", 1045, 5)],
         [("Scan", "cpu", 2, 75e-6), ("Tanh", "cpu", 1, 20e-6), ("Mul", "cpu", 1, 5e-6)]),
        # nodes of other threads at the same time are not within one another
        ([*SKIPPED, run(1000), node("MatMul", 1000, 100), node("Add", 1010, 20, tid=2)],
         [("MatMul", "cpu", 1, 100e-6), ("Add", "cpu", 1, 20e-6)]),
        # waiting is no time of a node
        ([*SKIPPED, run(1000), node("Add", 1000, 5), node("Add", 1000, 40) | {"name": "n_fence_before"}],
         [("Add", "cpu", 1, 5e-6)]),
    ],
)  # fmt: skip
def test_events_become_times(events: list[dict[str, Any]], expected: list[tuple[Any, ...]]) -> None:
    found = operator_times([events])
    assert [(t.operator, t.provider, t.count) for t in found] == [e[:3] for e in expected]
    assert [t.seconds for t in found] == pytest.approx([e[3] for e in expected])


def test_a_step_is_the_sum_of_the_graphs_that_it_runs() -> None:
    first = [*SKIPPED, run(1000), node("MatMul", 1000, 30), run(2000), node("MatMul", 2000, 10)]
    second = [*SKIPPED, run(500), node("MatMul", 500, 5), node("Add", 510, 7)]
    found = operator_times([first, second])
    assert [(t.operator, t.count) for t in found] == [("MatMul", 2), ("Add", 1)]
    assert [t.seconds for t in found] == pytest.approx([25e-6, 7e-6])


def test_a_session_is_profiled_and_leaves_no_file(
    digits_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    steps = []

    def step(session: TrainSession) -> None:
        steps.append(session.step(random_batch(session.manifest, session.batch_size, 0), lr=1e-3).loss)

    found = session_operators(lambda: TrainSession(digits_artifact, threads=1), step)
    counts = {t.operator: t.count for t in found}
    assert {t.provider for t in found} == {"cpu"}
    # two convolutions forward, and their weight gradients at the least
    assert counts["FusedConv"] + counts.get("Conv", 0) >= 2
    assert counts["Gemm"] >= 1
    assert all(t.seconds >= 0 for t in found)
    assert [t.seconds for t in found] == sorted((t.seconds for t in found), reverse=True)
    assert len(steps) == 5
    assert list(tmp_path.iterdir()) == []


def test_a_session_outside_is_not_profiled(
    digits_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session_operators(lambda: TrainSession(digits_artifact, threads=1), lambda session: None)
    session = TrainSession(digits_artifact, threads=1)
    session.step(random_batch(session.manifest, session.batch_size, 0), lr=1e-3)
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_torch_tells_its_operators() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    from onnxft.benchmark.torch_probe import torch_operators

    x, w = torch.ones(7, 5), torch.ones(5, 3, requires_grad=True)
    found = torch_operators(lambda: torch.tanh(x @ w).sum().backward())
    assert {t.operator: t.count for t in found}["aten::mm"] == 2  # forward, and the gradient of w
    assert all(isinstance(t, OperatorTime) and t.provider == "torch" for t in found)
    assert [t.seconds for t in found] == sorted((t.seconds for t in found), reverse=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torch_has_a_peak(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed here")
    from onnxft.benchmark import peaks
    from onnxft.benchmark.torch_probe import torch_peaks

    monkeypatch.setattr(peaks, "MATMUL_SIZES", (64,))
    monkeypatch.setattr(peaks, "COPY_BYTES", 1 << 20)
    found = torch_peaks(1, precision)
    assert found.flops > 0
    assert found.bandwidth > 0
