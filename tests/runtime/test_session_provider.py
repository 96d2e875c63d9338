"""What runs is what was asked for, or there is an error (a runtime falls back to its CPU with a warning only).

Trap S8 and rows 22 (a precision that a provider does not have) and 23 (silent fallback) of the reported ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxft.errors import ConfigError, ProviderError
from onnxft.runtime import precision, sessions
from onnxft.runtime.buffers import BoundRunner
from onnxft.runtime.execution import Execution
from onnxft.runtime.providers import PROVIDERS
from onnxft.runtime.random_batch import random_batch
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


def node(i: int) -> Any:
    return SimpleNamespace(name=f"n{i}", op_type="Gather")


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
                SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [node(i) for i in range(count)])
                for name, count in self.nodes.items()
            ]
        return session


def open_on(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> sessions.OpenSession:
    monkeypatch.setattr(sessions, "runtime", lambda: fake)
    monkeypatch.setattr(sessions, "is_builtin", lambda entry: entry.runtime_name in fake.get_available_providers())
    return open_session(b"model", Execution("cuda", **asked))


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
    assert opened.fallback == ({"cpu": ("n0 (Gather)", "n1 (Gather)")} if nodes and CPU in nodes else {})
    # The runtime's own fallback would repeat a failed session on the CPU; TF32 is off by our table.
    ((name, options), behind), fallback = (fake.calls[0][key] for key in ("providers", "enable_fallback"))
    assert (name, options["use_tf32"], behind, fallback) == (CUDA, "0", CPU, 0)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            {CUDA: 5, CPU: 7},
            "strict: 7 of 12 nodes of the model are not on 'cuda': n0 (Gather) on cpu, n1 (Gather) on cpu, n2 (Gather) "
            "on cpu, n3 (Gather) on cpu, n4 (Gather) on cpu and 2 more. Leave strict out",
        ),
        (None, "strict asks where each node runs, which onnxruntime 9.9 cannot tell"),
    ],
)
def test_strict_refuses_what_falls_back(
    nodes: dict[str, int] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProviderError) as err:
        open_on(FakeRuntime([CUDA, CPU], nodes), monkeypatch, strict=True)
    assert words in str(err.value)


def test_strict_takes_what_runs_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_on(FakeRuntime([CUDA, CPU], {CUDA: 5}), monkeypatch, strict=True).nodes == {"cuda": 5}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"precision": "bfloat16"}, ProviderError, "'cpu' does not compute in bfloat16; it can do float32"),
        ({"precision": "fp32"}, ConfigError, "no precision 'fp32'. Known: 'float32', 'bfloat16'"),
        ({"device": 1}, ProviderError, "'cpu' has one device, and device 1 was asked for"),
        ({"device": -1}, ConfigError, "device is -1; it must be at least 0"),
        ({"threads": 0}, ConfigError, "threads is 0; it must be at least 1"),
        ({"provider_options": {"no_such_option": "1"}}, ProviderError, "'cpu' has no option 'no_such_option'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_provider_cannot_do_is_refused(
    asked: dict[str, Any], error: type[Exception], words: str, exported: Callable[..., Path]
) -> None:
    with pytest.raises(error) as err:
        TrainSession(exported("mlp"), **asked)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9",
            r"'cpu' has not enough memory for the graph '{}' \(1 : FAIL.*size 9\)\. Lower --batch-size, and raise",
        ),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED", "'cpu' has not enough memory for the graph '{}'"),
        ("CUDA failure 2: out of memory ; GPU=0", "'cpu' has not enough memory for the graph '{}'"),
        ("the device was removed", "'cpu' fails in the graph '{}': the device was removed. Try another provider"),
    ],
)
@pytest.mark.parametrize("graph", ["train", "gradients", "eval"])
def test_a_run_that_fails_says_what_to_do(
    graph: str, raised: str, words: str, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError(raised)

    with TrainSession(exported("mlp"), threads=1) as session:
        batch = random_batch(session.manifest, 3, 0)
        calls = {
            "train": lambda: session.step(batch, lr=1e-3),
            "gradients": lambda: session.accumulate(batch),
            "eval": lambda: session.evaluate(batch),
        }
        before = session.parameters
        monkeypatch.setattr(BoundRunner, "run", fail)
        with pytest.raises(ProviderError, match=words.format(graph)):
            calls[graph]()
        assert all((before[name] == value).all() for name, value in session.parameters.items())
        assert session.step_count == 0


@pytest.mark.parametrize(
    ("config", "precision", "hint"),
    [
        ('{"CPU": {"NUM_STREAMS": "2"}}', "float32", "f32"),
        ('{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}', "bfloat16", "bf16"),
    ],
)
def test_an_option_of_openvino_cannot_change_the_precision_in_silence(config: str, precision: Any, hint: str) -> None:
    asked = Execution("openvino", precision, options={"load_config": config})
    with pytest.raises(ProviderError, match=f'"INFERENCE_PRECISION_HINT": "{hint}" for CPU'):
        PROVIDERS["openvino"].options(asked)


def test_a_model_that_does_not_open_is_a_provider_error() -> None:
    with pytest.raises(ProviderError, match="'cpu' cannot open the model"):
        open_session(b"no model")


@pytest.mark.parametrize(
    ("cpu_info", "options", "words"),
    [
        ("flags\t\t: fpu avx512f amx_bf16\n", {}, None),
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16\n", {}, None),
        (None, {}, None),  # where it cannot be read, the provider is trusted
        ("Features\t: fp asimd bf16\n", {}, None),
        ("flags\t\t: fpu avx512f\n", {}, "on processors that have avx512_bf16 or amx_bf16"),
        ("flags\t\t: amx_bf16\n", {"device_type": "GPU"}, "on its device CPU only, and device_type GPU"),
    ],
)
def test_bfloat16_needs_a_processor_that_has_it(
    cpu_info: str | None, options: dict[str, str], words: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "cpuinfo")
    asked = Execution("openvino", "bfloat16", options=options)
    if words is None:
        precision.require_precision(sessions.PROVIDERS["openvino"], asked)
        return
    with pytest.raises(ProviderError) as err:
        precision.require_precision(sessions.PROVIDERS["openvino"], asked)
    assert words in str(err.value)


def test_openvino_is_not_asked_for_float16() -> None:
    with pytest.raises(ProviderError, match="'openvino' does not compute in float16; it can do float32, bfloat16"):
        precision.require_precision(sessions.PROVIDERS["openvino"], Execution("openvino", "float16"))
