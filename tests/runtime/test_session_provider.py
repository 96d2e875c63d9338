"""What runs is what was asked for, or there is an error (a runtime falls back to its CPU with a warning only)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxft.errors import ProviderError
from onnxft.runtime import sessions
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sessions import open_session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_the_placement_says_what_runs(exported: Callable[..., Path]) -> None:
    with TrainSession(exported("mlp"), threads=1) as session:
        placement = session.placement
    assert (placement.requested, placement.obtained) == ("cpu", "cpu")
    assert set(placement.nodes) == {"train"}
    assert set(placement.nodes["train"]) in ({"cpu"}, set())  # before onnxruntime 1.24 it cannot tell
    assert placement.versions["onnxruntime"]


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_that_the_runtime_lacks_is_an_error(name: str, exported: Callable[..., Path]) -> None:
    if sessions.is_builtin(sessions.PROVIDERS[name]):
        pytest.skip(f"this onnxruntime was built with {name}")
    with pytest.raises(ProviderError) as err:
        TrainSession(exported("mlp"), name, threads=1)
    assert f"provider '{name}' is not available" in str(err.value)
    assert "pip install onnxft[gpu]" in str(err.value)


def test_an_unknown_provider_is_an_error(exported: Callable[..., Path]) -> None:
    with pytest.raises(ProviderError, match=r"unknown provider 'openvin'\. Did you mean 'openvino'\?"):
        TrainSession(exported("mlp"), "openvin")


class FakeRuntime:
    """A runtime that lists CUDA and gives whatever session it likes."""

    __version__ = "9.9"

    def __init__(self, providers: list[str], nodes: dict[str, int] | None) -> None:
        self.providers, self.nodes, self.calls = providers, nodes, []

    def SessionOptions(self) -> Any:  # noqa: N802 - the runtime's name
        return SimpleNamespace(
            add_session_config_entry=lambda key, value: None,
            add_free_dimension_override_by_name=lambda name, value: None,
        )

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(self, model: object, options: object, **arguments: Any) -> Any:  # noqa: N802
        self.calls.append(arguments)
        session = SimpleNamespace(get_providers=lambda: self.providers)
        if self.nodes is not None:
            session.get_provider_graph_assignment_info = lambda: [
                SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
                for name, count in self.nodes.items()
            ]
        return session


def open_on(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> sessions.OpenSession:
    monkeypatch.setattr(sessions, "runtime", lambda: fake)
    monkeypatch.setattr(sessions, "is_builtin", lambda entry: entry.runtime_name in fake.get_available_providers())
    return open_session(b"model", "cuda")


@pytest.mark.parametrize(
    ("providers", "nodes", "words"),
    [
        ([CPU], None, "the session runs on CPUExecutionProvider: its libraries do not load here"),
        ([], None, "the session runs on nothing"),
        ([CPU, CUDA], {CUDA: 3}, "the session runs on CPUExecutionProvider, CUDAExecutionProvider"),
        ([CUDA, CPU], {CPU: 7}, "'cuda' loads but takes no node of the model; all would run on cpu"),
    ],
)
def test_a_session_that_runs_elsewhere_is_refused(
    providers: list[str], nodes: dict[str, int] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProviderError) as err:
        open_on(FakeRuntime(providers, nodes), monkeypatch)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("nodes", "placed"), [({CUDA: 5, CPU: 2}, {"cuda": 5, "cpu": 2}), ({CUDA: 7}, {"cuda": 7}), (None, {})]
)
def test_a_session_that_runs_there_says_where_its_nodes_are(
    nodes: dict[str, int] | None, placed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRuntime([CUDA, CPU], nodes)
    opened = open_on(fake, monkeypatch)
    assert opened.nodes == placed
    # The runtime's own fallback would repeat a failed session on the CPU; TF32 is off by our table.
    assert fake.calls == [{"providers": [(CUDA, {"use_tf32": "0"}), CPU], "enable_fallback": 0}]


def test_a_model_that_does_not_open_is_a_provider_error() -> None:
    with pytest.raises(ProviderError, match="'cpu' cannot open the model"):
        open_session(b"no model")
