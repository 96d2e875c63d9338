"""Opening an inference session so that what runs is what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnxft.errors import ProviderError
from onnxft.runtime.providers import PROVIDERS, Provider, first_line, is_builtin, plugin_devices, provider, runtime


@dataclass(frozen=True)
class OpenSession:
    """An open session and what the runtime says about it."""

    session: Any
    provider: Provider
    nodes: dict[str, int]
    """{provider name: nodes, a fused subgraph counting as its nodes}; empty where the runtime cannot tell."""
    options: dict[str, str]

    def close(self) -> None:
        """Release the native session."""
        object.__setattr__(self, "session", None)


def open_session(
    model: Path | bytes,
    name: str = "cpu",
    *,
    threads: int | None = None,
    dimensions: Mapping[str, int] | None = None,
    options: Mapping[str, str] | None = None,
    shared_arena: bool = False,
) -> OpenSession:
    """Open `model` on the provider `name`, its symbolic dimensions fixed.

    Args:
        model: path of an ONNX file, or its bytes.
        name: provider name as in `PROVIDERS`.
        threads: threads inside an operator; None leaves it to the runtime.
        dimensions: values of symbolic dimensions, so that every provider sees static shapes.
        options: provider options that override the table's.
        shared_arena: take memory on the CPU from one arena of the process, for sessions that take turns; it is given
            back when the process ends, that of a session's own arena with the session.

    Raises:
        ProviderError: the provider is unknown, absent, does not load, or would not run the graph.
    """
    entry = provider(name)
    ort = runtime()
    settings = {**entry.options(threads), **(options or {})}
    so = _session_options(ort, threads, dimensions or {})
    if shared_arena:
        _register_arena()
        so.add_session_config_entry("session.use_env_allocators", "1")
    providers: list[Any] | None = None
    if is_builtin(entry):
        providers = [(entry.runtime_name, settings)]
        if entry.name != "cpu":
            providers.append("CPUExecutionProvider")
    else:
        devices = plugin_devices(entry)
        if not devices:
            raise ProviderError(_absent(entry))
        settings = {k: v for k, v in settings.items() if k != "device_type"}  # the device says it
        so.add_provider_for_devices(list(devices), settings)
    source = model if isinstance(model, bytes) else str(model)
    # With the runtime's own fallback a session or run that fails is silently repeated on the CPU.
    try:
        session = ort.InferenceSession(source, so, providers=providers, enable_fallback=0)
    except Exception as err:  # the runtime raises its own classes, one a status code
        raise ProviderError(
            f"provider '{name}' cannot open {'the model' if isinstance(model, bytes) else repr(model.name)}: "
            f"{first_line(err)}."
        ) from err
    obtained = session.get_providers()
    if not obtained or obtained[0] != entry.runtime_name:
        raise ProviderError(
            f"provider '{name}' was asked for, but the session runs on {', '.join(obtained) or 'nothing'}: its "
            f"libraries do not load here. It needs {entry.how_to_install}."
        )
    nodes = _nodes_by_provider(session)
    names = {p.runtime_name: p.name for p in PROVIDERS.values()}
    placed = {names.get(k, k): v for k, v in nodes.items()}
    if placed and name not in placed:
        raise ProviderError(
            f"provider '{name}' loads but takes no node of {'the model' if isinstance(model, bytes) else model.name}; "
            f"all would run on {', '.join(placed)}. Use --provider {next(iter(placed))}, or export for '{name}'."
        )
    return OpenSession(session, entry, placed, settings)


def _session_options(ort: Any, threads: int | None, dimensions: Mapping[str, int]) -> Any:
    so = ort.SessionOptions()
    so.log_severity_level = 3  # warnings of the runtime speak of its internals; what matters is checked here
    if threads is not None:
        so.intra_op_num_threads = threads
    so.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for dimension, value in dimensions.items():
        so.add_free_dimension_override_by_name(dimension, value)
    return so


@cache
def _register_arena() -> None:
    """Make the arena of the process; the runtime takes one for each kind of memory."""
    ort = runtime()
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(cpu, None)


def _nodes_by_provider(session: Any) -> dict[str, int]:
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before onnxruntime 1.24
        return {}
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def _absent(entry: Provider) -> str:
    ort = runtime()
    reason = f"this onnxruntime {ort.__version__} was built without it"
    if entry.plugin is not None:
        reason += ", and the plug-in package is not installed or offers no device for this processor"
    return f"provider '{entry.name}' is not available: {reason}. It needs {entry.how_to_install}."
