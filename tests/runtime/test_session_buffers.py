"""Buffers between steps: the runtime may write an output before the last reader of the input it stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft.manifest import GraphFile
from onnxft.runtime import graph_runs
from onnxft.runtime.buffers import BoundRunner, BoundStore, ort_value
from onnxft.runtime.engine import Hyper
from onnxft.runtime.execution import Execution
from onnxft.runtime.keys import always_in_place
from onnxft.runtime.native import NativeEngine
from onnxft.runtime.sessions import OpenSession, open_session
from onnxft.runtime.values import SplitStore, ValueRunner, ValueStore

ROWS = 16
RNG = np.random.default_rng(40)
COMMON = {"labels": np.arange(ROWS) % 4, "sample_weights": np.ones(ROWS, np.float32)}
BATCHES = {
    "mlp": {"x": RNG.standard_normal((ROWS, 7)).astype(np.float32), **COMMON},
    # Its BatchNorm trains: running statistics change buffers with the gradients, parameters with the update.
    "normed": {
        "image": RNG.standard_normal((ROWS, 2, 9, 8)).astype(np.float32),
        "random.0": np.ones((ROWS, 7), np.float32),
        **COMMON,
    },
}
MODELS = pytest.mark.parametrize("model", BATCHES)


class RecordingBinding:
    """Notes where inputs and outputs lie."""

    def __init__(self, real: Any) -> None:
        self.real, self.inputs, self.outputs = real, {}, {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[value.data_ptr()] = name
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.outputs[value.data_ptr()] = name
        self.real.bind_ortvalue_output(name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class RecordingSession:
    """A real session whose bindings are noted under the name of its graph file."""

    def __init__(self, session: Any, runs: list[RecordingBinding]) -> None:
        self.session, self.runs = session, runs

    def io_binding(self) -> RecordingBinding:
        return RecordingBinding(self.session.io_binding())

    def run_with_iobinding(self, binding: RecordingBinding) -> None:
        self.runs.append(binding)
        self.session.run_with_iobinding(binding.real)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[RecordingBinding]]:
    """{graph role: the binding of each run} of the engines opened in a test."""
    found: dict[str, list[RecordingBinding]] = {}

    def record(path: Path, *args: Any, **options: Any) -> OpenSession:
        opened = open_session(path, *args, **options)
        session = RecordingSession(opened.session, found.setdefault(path.stem, []))
        return replace(opened, session=session)

    monkeypatch.setattr(graph_runs, "open_session", record)
    return found


def engine(
    exported: Callable[..., Path], model: str, provider: str = "cpu", *, accumulates: bool = False
) -> NativeEngine:
    """An engine on an artifact, that has no graph of a batch's gradients alone if it `accumulates` always."""
    from onnxft.runtime.artifact import load_artifact

    artifact = exported(model, **({"train_batchnorm": ("bn1", "bn3")} if model == "normed" else {}))
    manifest = load_artifact(artifact)
    if accumulates:
        graphs = {role: graph for role, graph in manifest.graphs.items() if role != "batch_gradients"}
        manifest = replace(manifest, graphs=graphs)
    return NativeEngine(artifact, manifest, Execution(provider, threads=1))


def hyper(step: int) -> Hyper:
    return Hyper({"default": 0.05}, {"default": 0.01}, step)


@MODELS
def test_what_lies_over_what_it_replaces(
    model: str, exported: Callable[..., Path], runs: dict[str, list[RecordingBinding]]
) -> None:
    """Parameters are read in the backward part, so only an update without it writes them in place."""
    opened, batch = engine(exported, model), BATCHES[model]
    for step in range(1, 4):
        opened.step(batch, hyper(2 * step - 1))
        for _ in range(3):
            opened.accumulate(batch)
        opened.update(hyper(2 * step), 3.0 * ROWS)
    assert [len(runs[role]) for role in ("train", "gradients", "update")] == [3, 9, 3]
    over: dict[str, list[set[str]]] = {}
    for role, bindings in runs.items():
        for binding in bindings:
            assert binding.outputs, "nothing was bound"
            same = {name: binding.inputs[place] for place, name in binding.outputs.items() if place in binding.inputs}
            assert all(
                output in (f"{name}.new", name.replace(".accumulator", ".gradient")) for output, name in same.items()
            )
            over.setdefault(role, []).append(set(same.values()))
    state, parameters = {"fc1.weight.exp_avg", "fc1.weight.exp_avg_sq"}, {"fc1.weight"}
    for names in over["train"]:
        assert names >= state
        assert not names & parameters
    for first, *others in (over["gradients"][i : i + 3] for i in (0, 3, 6)):
        assert not {name for name in first if name.endswith(".accumulator")}  # the zeros stay
        assert all(names >= {"fc1.weight.accumulator"} for names in others)
    assert all(names >= state | parameters for names in over["update"])


@MODELS
def test_written_in_place_or_not_is_the_same(
    model: str, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*, in_place: bool) -> dict[str, bytes]:
        def runner(opened: OpenSession, graph: GraphFile, store: BoundStore) -> BoundRunner:
            outputs = tuple(replace(p, in_place=p.in_place and in_place) for p in graph.outputs)
            return BoundRunner(opened, replace(graph, outputs=outputs), store)

        monkeypatch.setattr(graph_runs, "BoundRunner", runner)
        monkeypatch.setattr(graph_runs, "always_in_place", lambda graphs: always_in_place(graphs) if in_place else ())
        opened, batch = engine(exported, model), BATCHES[model]
        for step in range(1, 6):
            opened.step(batch, hyper(2 * step - 1))
            opened.accumulate(batch)
            opened.accumulate(batch)
            opened.update(Hyper({"default": 0.05}, {"default": 0.01}, 2 * step, max_norm=0.5, max_value=0.1), 2 * ROWS)
        return {n: v.tobytes() for n, v in (opened.parameters() | opened.state() | opened.buffers()).items()}

    assert run(in_place=True) == run(in_place=False)


@MODELS
def test_both_ways_of_binding_are_the_same(
    model: str, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(store: type, runner: Any) -> dict[str, bytes]:
        monkeypatch.setattr(graph_runs, "BoundStore", store)
        monkeypatch.setattr(graph_runs, "BoundRunner", runner)
        opened, batch = engine(exported, model), BATCHES[model]
        for step in range(1, 6):
            opened.step(batch, hyper(2 * step - 1))
            opened.accumulate(batch)
            opened.accumulate(batch)
            opened.update(hyper(2 * step), 2.0 * ROWS)
        return {n: v.tobytes() for n, v in (opened.parameters() | opened.state() | opened.buffers()).items()}

    bound = run(BoundStore, BoundRunner)
    values = run(ValueStore, ValueRunner)
    assert bound == values


@pytest.mark.parametrize("accumulates", [False, True])
@MODELS
def test_updates_on_another_provider_are_the_same(
    model: str, accumulates: bool, exported: Callable[..., Path], updates_apart: str
) -> None:
    """From gradients of each batch alone; and from accumulated ones, which are all that an older artifact has."""

    def run(name: str) -> tuple[NativeEngine, dict[str, bytes]]:
        opened, batch = engine(exported, model, name, accumulates=accumulates), BATCHES[model]
        for step in range(1, 6):
            opened.accumulate(batch)
            opened.update(hyper(2 * step - 1), 1.0 * ROWS)
            opened.accumulate(batch)
            opened.accumulate(batch)
            opened.update(hyper(2 * step), 2.0 * ROWS)
        values = opened.parameters() | opened.state() | opened.buffers() | opened.gradients(batch)[0]
        return opened, {n: v.tobytes() for n, v in values.items()}

    (apart, found), (_, expected) = run(updates_apart), run("cpu")
    assert found == expected
    assert set(apart.placement.nodes) == {"gradients", "update"}
    assert not apart.placement.fallback


@MODELS
def test_gradients_of_a_batch_alone_take_no_accumulators(model: str, exported: Callable[..., Path]) -> None:
    graphs = engine(exported, model).manifest.graphs
    alone, added = graphs["batch_gradients"], graphs["gradients"]
    assert [p.name for p in alone.outputs] == [p.name for p in added.outputs]
    assert alone.inputs == tuple(p for p in added.inputs if p.role != "accumulator") != added.inputs


def test_what_was_handed_over_can_be_replaced_and_is_let_go() -> None:
    held = SplitStore({"w": np.ones(3), "w/gradient": np.zeros(3)})
    handed = ort_value(np.array([1.0, 2.0, 3.0]))
    held.put("w/gradient", handed)
    assert held.current("w/gradient") is handed
    held.write("w/gradient", np.array([4.0, 5.0, 6.0]))  # as processes do that add up theirs
    assert held.get("w/gradient").numpy().tolist() == [4, 5, 6]
    held.clear_accumulators()
    assert held.get("w/gradient").numpy().tolist() == [0, 0, 0]
    assert not held.handed


def test_the_first_gradient_is_the_accumulator_that_others_are_added_to() -> None:
    held = SplitStore({"w": np.ones(3), "w/gradient": np.zeros(3)})
    for _ in range(2):
        first, second = ort_value(np.array([1.0, 2.0, 3.0])), ort_value(np.array([4.0, 5.0, 6.0]))
        held.add("w/gradient", first)
        assert held.current("w/gradient") is first
        held.add("w/gradient", second)
        assert held.current("w/gradient") is first
        assert held.read("w/gradient").tolist() == [5, 7, 9]
        assert second.numpy().tolist() == [4, 5, 6]
        held.clear_accumulators()
        assert held.read("w/gradient").tolist() == [0, 0, 0]


@pytest.mark.parametrize("store", [BoundStore, ValueStore, SplitStore])
def test_a_store_hands_out_and_takes_copies(store: type) -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    held = store({"w": first, "w/gradient": np.zeros(3)})
    first[:] = 0
    assert held.read("w").tolist() == [1, 2, 3]
    held.read("w")[:] = 0
    assert held.read("w").tolist() == [1, 2, 3]
    held.write("w", second)
    second[:] = 0
    assert held.read("w").tolist() == [4, 5, 6]
    assert held.read("w/gradient").tolist() == [0, 0, 0]
