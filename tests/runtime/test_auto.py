"""`auto` takes the fastest provider that works, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import auto
from onnxft.runtime import session as session_module
from onnxft.runtime.execution import Execution
from onnxft.runtime.opening import open_engine
from onnxft.runtime.session import TrainSession


def candidates(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(auto, "_offered", lambda entry: entry.name in names)


def test_the_fastest_is_taken_and_every_other_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates(monkeypatch, "cpu", "openvino", "cuda", "webgpu")

    def step_seconds(name: str) -> float:
        if name == "cuda":
            raise ProviderError("no driver is loaded. Install one.")
        return {"cpu": 0.05, "openvino": 0.1, "webgpu": 0.0123}[name]

    choice = auto.choose(Execution("auto", threads=1, strict=True), step_seconds)
    assert choice.asked == Execution("webgpu", threads=1, strict=True)
    assert choice.reason == (
        "webgpu 12.3 ms a step; cpu 50 ms a step; openvino 100 ms a step; "
        "cuda does not work (no driver is loaded. Install one)"
    )


def test_the_time_of_a_step_is_the_median_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = 0.0, [90.0, 1.0, 5.0, 2.0, 4.0, 3.5]

    def step() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(auto.time, "perf_counter", lambda: now)
    assert auto.median_seconds(step) == 3.5
    assert not left


def test_where_none_works_all_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates(monkeypatch, "cpu", "cuda")

    def step_seconds(name: str) -> float:
        raise ProviderError(f"{name} is broken.")

    with pytest.raises(ProviderError, match=r"'auto' finds no provider that works: cpu is broken\.; cuda is broken"):
        auto.choose(Execution("auto"), step_seconds)


def test_a_session_says_that_auto_was_asked_for(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    candidates(monkeypatch, "cpu")
    with TrainSession(exported("mlp"), "auto", threads=1) as session:
        placement = session.placement
    assert (placement.requested, placement.obtained) == ("auto", "cpu")
    assert placement.lines()[0] == "auto -> cpu, float32 (cpu is the only one that this runtime offers)"


def test_trying_leaves_the_parameters_alone(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = exported("mlp")
    with TrainSession(artifact, threads=1) as session:
        before = session.parameters
    entries = iter(["cpu", "openvino"])
    candidates(monkeypatch, *entries)
    monkeypatch.setattr(
        session_module,
        "open_engine",
        lambda directory, manifest, asked, **settings: open_engine(
            directory, manifest, Execution(threads=1), **settings
        ),
    )
    with TrainSession(artifact, "auto") as session:
        after = session.parameters
        assert " ms a step" in session.placement.reason
    assert all((before[name] == after[name]).all() for name in before)
