"""`auto` takes the fastest provider that works, and says why."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import auto
from onnxft.runtime import session as session_module
from onnxft.runtime.execution import Execution
from onnxft.runtime.opening import open_engine
from onnxft.runtime.session import TrainSession


def candidates(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(auto, "_offered", lambda entry: entry.name in names)


def slower(step: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """As on a slower machine; the order is all that is asserted."""

    def wait_and_step(batch: Any, *, lr: float) -> Any:
        time.sleep(seconds)
        return step(batch, lr=lr)

    return wait_and_step


def test_the_fastest_is_taken_and_every_other_is_named(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates(monkeypatch, "cpu", "openvino", "cuda", "webgpu")
    opened: list[TrainSession] = []

    def session(name: str) -> TrainSession:
        if name == "cuda":
            raise ProviderError("no driver is loaded. Install one.")
        made = TrainSession(exported("mlp"), threads=1)
        monkeypatch.setattr(made, "step", slower(made.step, {"cpu": 0.05, "openvino": 0.1}.get(name, 0)))
        opened.append(made)
        return made

    choice = auto.choose(Execution("auto", threads=1, strict=True), session)
    assert choice.asked == Execution("webgpu", threads=1, strict=True)
    parts = choice.reason.split("; ")
    assert [part.split(" ")[0] for part in parts] == ["webgpu", "cpu", "openvino", "cuda"]
    assert all(part.endswith(" ms a step") for part in parts[:3])
    assert parts[3] == "cuda does not work (no driver is loaded. Install one)"
    assert len(opened) == 3


def test_where_none_works_all_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates(monkeypatch, "cpu", "cuda")

    def session(name: str) -> Any:
        raise ProviderError(f"{name} is broken.")

    with pytest.raises(ProviderError, match=r"'auto' finds no provider that works: cpu is broken\.; cuda is broken"):
        auto.choose(Execution("auto"), session)


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
