"""State in the memory of a device, on a runtime that only pretends to have one.

Each graph really runs, on the CPU; what the pretended runtime adds is where every tensor lies, and the rule of CUDA
graphs that a recording is repeated at the addresses it was made with. Row 21 of the reported traps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxft.runtime import buffers, graph_runs, sessions
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.engine import Hyper
from onnxft.runtime.execution import Execution
from onnxft.runtime.native import NativeEngine
from onnxft.runtime.providers import PROVIDERS, runtime
from onnxft.runtime.sessions import OpenSession, open_session

ROWS = 16
DEVICE = 1
RNG = np.random.default_rng(41)
BATCH = {
    "x": RNG.standard_normal((ROWS, 7)).astype(np.float32),
    "labels": np.arange(ROWS) % 4,
    "sample_weights": np.ones(ROWS, np.float32),
}
SHORT = {name: value[:5] for name, value in BATCH.items()}


class Value:
    """A tensor that knows where it lies."""

    reads: ClassVar[Counter[str]] = Counter()
    """How many tensors were read back, by place."""

    def __init__(self, real: Any, place: str, device: int = 0) -> None:
        self.real, self.place, self.device = real, place, device

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, place: str = "cpu", device: int = 0) -> Value:
        return cls(runtime().OrtValue.ortvalue_from_numpy(array.copy()), place, device)

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous, "the runtime copies bytes"
        self.real.update_inplace(array)

    def numpy(self) -> np.ndarray:
        self.reads[self.place] += 1
        return self.real.numpy()


class Binding:
    def __init__(self, real: Any) -> None:
        self.real, self.inputs, self.outputs = real, {}, {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value
        self.real.bind_ortvalue_input(name, value.real)

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs.pop(name, None)
        self.outputs[name] = value
        self.real.bind_ortvalue_output(name, value.real)

    def bind_output(self, name: str) -> None:
        self.outputs.pop(name, None)
        self.outputs[name] = None
        self.real.bind_output(name)

    def get_outputs(self) -> list[Value]:
        places = [value.place if value else "cpu" for value in self.outputs.values()]
        return [Value(real, place) for real, place in zip(self.real.get_outputs(), places, strict=True)]


class Session:
    """Runs on the CPU and keeps to the rules of CUDA graphs."""

    def __init__(self, real: Any, *, captures: bool) -> None:
        self.real, self.captures = real, captures
        self.recorded: dict[str, list[int]] = {}
        self.bindings: list[Binding] = []
        self.eager = 0

    def io_binding(self) -> Binding:
        return Binding(self.real.io_binding())

    def get_outputs(self) -> Sequence[Any]:
        return self.real.get_outputs()

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        if self.captures:
            values = (*binding.inputs.values(), *binding.outputs.values())
            assert all(value is not None and value.place == "cuda" for value in values), "not at a fixed address"
            met = self.recorded.setdefault(self.number(options), [v.real.data_ptr() for v in values])
            assert met == [v.real.data_ptr() for v in values], "a recording is repeated at other addresses"
        self.bindings.append(binding)
        self.real.run_with_iobinding(binding.real)

    def run(self, names: list[str], feeds: dict[str, Any], options: Any = None) -> list[Any]:
        self.require_eager(options)
        return self.real.run(names, feeds)

    def run_with_ort_values(self, names: list[str], feeds: dict[str, Value], options: Any = None) -> list[Value]:
        self.require_eager(options)
        found = self.real.run_with_ort_values(names, {n: v.real for n, v in feeds.items()})
        return [Value(real, "cpu") for real in found]

    def require_eager(self, options: Any) -> None:
        self.eager += 1
        assert not self.captures or self.number(options) == "-1", "a recording of memory that nobody keeps"

    @staticmethod
    def number(options: Any) -> str:
        return str(options.get_run_config_entry("gpu_graph_id"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, exported: Callable[..., Path]) -> Callable[..., tuple[NativeEngine, Any]]:
    """opened(model, provider options): an engine on a pretended CUDA device, and {graph: its sessions}."""

    def make(model: str = "mlp", **options: str) -> tuple[NativeEngine, dict[str, list[Session]]]:
        found: dict[str, list[Session]] = {}

        def pretend(path: Path, asked: Execution, **settings: Any) -> OpenSession:
            assert (asked.provider, asked.device) == ("cuda", DEVICE)
            entry = PROVIDERS["cuda"]
            real = open_session(path, Execution(threads=1), **settings)
            given = replace(real, provider=entry, options={**entry.options(asked), **asked.options})
            session = Session(real.session, captures=given.captures)
            found.setdefault(path.stem, []).append(session)
            return replace(given, session=session)

        fake = SimpleNamespace(OrtValue=Value, RunOptions=runtime().RunOptions, __version__="9")
        monkeypatch.setattr(buffers, "runtime", lambda: fake)
        monkeypatch.setattr(graph_runs, "runtime", lambda: fake)
        monkeypatch.setattr(graph_runs, "open_session", pretend)
        artifact = exported(model)
        asked = Execution("cuda", device=DEVICE, options=options)
        return NativeEngine(artifact, load_artifact(artifact), asked), found

    return make


def hyper(step: int) -> Hyper:
    return Hyper({"default": 0.05}, {"default": 0.01}, step)


def work(engine: NativeEngine) -> dict[str, bytes]:
    """Every path that reads or writes state, and all that comes of it."""
    found: dict[str, np.ndarray] = {}
    for step in range(1, 5):
        found[f"loss {step}"] = np.array(engine.step(BATCH, hyper(2 * step - 1)).read()[0])
        for name, g in engine.gradients(BATCH)[0].items():
            found[f"{name} {step}"] = g
        for _ in range(3):
            engine.accumulate(BATCH)
        engine.update(hyper(2 * step), 3.0 * ROWS)
        engine.average(0.1)
        for batch in (BATCH, SHORT):
            found[f"eval {len(batch['x'])} {step}"] = engine.evaluate(batch).outputs["output"]
        engine.show_averages(True)
        found[f"averaged {step}"] = engine.evaluate(BATCH).outputs["output"]
        engine.show_averages(False)
        if step == 2:
            engine.set_parameters({n: v * 0.9 for n, v in engine.parameters().items()})
            engine.set_state({n: v * 0.5 for n, v in engine.state().items()})
            engine.set_averages(engine.averages())
    found |= engine.parameters() | engine.state() | {f"{n}/average": v for n, v in engine.averages().items()}
    return {name: value.tobytes() for name, value in found.items()}


@pytest.mark.parametrize("options", [{}, {"enable_cuda_graph": "1"}], ids=["eager", "CUDA graphs"])
def test_every_path_is_that_of_the_cpu(
    options: dict[str, str], opened: Callable[..., Any], exported: Callable[..., Path]
) -> None:
    artifact = exported("mlp")
    expected = work(NativeEngine(artifact, load_artifact(artifact), Execution(threads=1)))
    engine, found = opened(**options)
    assert work(engine) == expected
    assert all(s.eager for s in found["gradients"]), "gradients() was not tried"
    if options:  # one recording for each pair of sides that a graph met
        assert {name: len(s.recorded) for name, (s, *_) in found.items()} == {
            "train": 2, "gradients": 4, "update": 2, "eval": 4, "average": 2,
        }  # fmt: skip
        numbers = [n for several in found.values() for s in several for n in s.recorded]
        assert len(set(numbers)) == len(numbers), "two recordings have one number"


def test_state_lies_on_the_device_and_is_never_read_between_steps(opened: Callable[..., Any]) -> None:
    engine, found = opened()
    engine.step(BATCH, hyper(1))
    Value.reads.clear()
    for step in range(2, 6):
        engine.step(BATCH, hyper(step))
        engine.accumulate(BATCH)
        engine.update(hyper(step), float(ROWS))
    assert Value.reads == {}
    for several in found.values():
        for binding in several[0].bindings:
            assert {(v.place, v.device) for v in binding.inputs.values()} == {("cuda", DEVICE)}
            kept = {name: v.place for name, v in binding.outputs.items() if v is not None}
            assert set(kept.values()) <= {"cuda"}
            assert len(binding.outputs) - len(kept) <= 3, "only loss, weight and metrics come back"


def test_batches_are_written_into_the_same_buffers(opened: Callable[..., Any]) -> None:
    engine, found = opened()
    for step in range(1, 7):
        engine.step({**BATCH, "x": BATCH["x"] * step}, hyper(step))
    met = {id(b.inputs["x"]) for b in found["train"][0].bindings}
    assert len(met) == 1


def test_a_result_is_kept_when_the_next_run_repeats_the_recording(opened: Callable[..., Any]) -> None:
    """Losses are read late, and by then a fixed buffer holds those of the last run."""
    engine, _ = opened(enable_cuda_graph="1")
    kept = [engine.step(BATCH, hyper(step)) for step in range(1, 5)]
    losses = [sums.read()[0] for sums in kept]
    assert losses == sorted(set(losses), reverse=True)


def test_cuda_graphs_refuse_nodes_on_the_cpu() -> None:
    entry = PROVIDERS["cuda"]
    options = {"enable_cuda_graph": "1"}
    given = OpenSession(None, entry, {"cuda": 5, "cpu": 1}, options, {"cpu": ("n (Gather)",)})
    with pytest.raises(sessions.ProviderError) as err:
        sessions._require_placement(given, "'train.onnx'", strict=False)
    assert "CUDA graphs need every node of 'train.onnx' on 'cuda', where 1 are not: n (Gather) on cpu" in str(err.value)
    assert "Leave enable_cuda_graph out." in str(err.value)
    sessions._require_placement(replace(given, options={}), "'train.onnx'", strict=False)
    sessions._require_placement(replace(given, fallback={}), "'train.onnx'", strict=False)


@pytest.mark.parametrize(("value", "captures"), [("1", True), ("true", True), ("True", True), ("0", False)])
def test_the_option_is_read_as_the_runtime_reads_it(value: str, captures: bool) -> None:
    for option in ("enable_cuda_graph", "trt_cuda_graph_enable"):
        assert OpenSession(None, PROVIDERS["cuda"], {}, {option: value}, {}).captures is captures


def test_options_of_cuda_search_convolutions_and_leave_tf32_out() -> None:
    found = PROVIDERS["cuda"].options(Execution("cuda", device=2))
    assert found["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert (found["use_tf32"], found["device_id"]) == ("0", "2")
