"""Opening an inference session so that what runs is what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from onnxft.errors import OnnxftError, ProviderError, near
from onnxft.frozen_weights import FrozenPrecision
from onnxft.runtime.denormals import are_zero
from onnxft.runtime.engine_cache import engine_cache
from onnxft.runtime.execution import Execution
from onnxft.runtime.graph_cache import OPTION, create_session
from onnxft.runtime.missing import missing, plugin_package, why_not_loaded
from onnxft.runtime.needs import Lack, LackError
from onnxft.runtime.nvidia_files import load_packages
from onnxft.runtime.precision import require_precision
from onnxft.runtime.providers import PROVIDERS, Provider, first_line, is_builtin, plugin_devices, provider, runtime

_CPU = "CPUExecutionProvider"
_OUT_OF_MEMORY = (
    "out of memory", "failed to allocate", "bad_alloc", "bad allocation",
    "out_of_memory", "alloc_failed",
)  # fmt: skip
"""What runtimes say, in lower case, where memory does not suffice."""
_NAMED = 5
"""Nodes that a message names."""
_CAPTURE = ("enable_cuda_graph", "trt_cuda_graph_enable")
"""Options with which a provider records its runs."""
_MAX_FOLDED = 2**16
"""Bytes of a constant that the runtime may compute where frozen weights are in half precision: shapes and masks."""
_WIDENS = "FuseFp16InitializerToFp32NodeTransformer"
"""The runtime's rewriting of a float16 constant and its Cast to one in float32."""
ROUNDING_FUSIONS = (
    "SkipLayerNormFusion", "LayerNormFusionL1", "LayerNormFusionL2", "SimplifiedLayerNormFusion",
    "EmbedLayerNormFusion", "BiasGeluFusion", "FastGeluFusion", "QuickGeluFusion", "AttentionFusion",
)  # fmt: skip
"""Optimizations that compute a value within its only reader, with another rounding than apart."""
_profile: ContextVar[Path | None] = ContextVar("profile", default=None)


@contextmanager
def profiling(prefix: Path) -> Iterator[None]:
    """Sessions opened within write the runtime's profile to `<prefix>_<time>.json` when they are closed."""
    token = _profile.set(prefix)
    try:
        yield
    finally:
        _profile.reset(token)


@dataclass(frozen=True)
class OpenSession:
    """An open session and what the runtime says about it."""

    session: Any
    provider: Provider
    nodes: dict[str, int]
    """{provider name: nodes, a fused subgraph counting as its nodes}; empty where the runtime cannot tell. Of a graph
    that was kept, the nodes that its optimization left."""
    options: dict[str, str]
    fallback: Mapping[str, tuple[str, ...]]
    """{another provider: nodes that it runs, as `name (type)`}"""

    @property
    def captures(self) -> bool:
        """Whether each run is recorded as a CUDA graph and repeated from then on, as the provider's options say."""
        return any(self.options.get(option, "").lower() in ("1", "true") for option in _CAPTURE)

    def close(self) -> None:
        """Release the native session."""
        object.__setattr__(self, "session", None)


def open_session(
    model: Path | bytes,
    asked: Execution | None = None,
    *,
    dimensions: Mapping[str, int] | None = None,
    shared_arena: bool = False,
    frozen: FrozenPrecision = "float32",
    without: Sequence[str] = (),
    optimize: bool = True,
    hashes: Mapping[str, str] | None = None,
) -> OpenSession:
    """Open `model` as `asked`, its symbolic dimensions fixed.

    Args:
        model: path of an ONNX file, or its bytes.
        asked: provider, precision, device, threads; None: the CPU.
        dimensions: values of symbolic dimensions, so that every provider sees static shapes.
        shared_arena: take memory on the CPU from one arena of the process, for sessions that take turns; it is given
            back when the process ends, that of a session's own arena with the session.
        frozen: in which its frozen weights are stored; below float32 they are not widened for good when it opens.
        without: names of the runtime's graph optimizations that are left out.
        optimize: whether the runtime looks for any.
        hashes: {file of its artifact: sha256}, already checked: with them the CPU can keep an optimized graph.

    Raises:
        ProviderError: the provider is unknown, absent, does not load, cannot do the precision, has no such device, or
            would not run the graph; or, where `asked.strict`, would not run all of it.
    """
    asked = asked or Execution()
    entry = provider(asked.provider)
    name = "the model" if isinstance(model, bytes) else f"'{model.name}'"
    require_precision(entry, asked)
    settings = {**entry.options(asked), **asked.options}
    without = (*without, *entry.slow_fusions)
    so = _session_options(asked.threads, dimensions or {})
    if frozen in ("float16", "bfloat16"):
        # Else they would be widened for good; the runtime leaves the DequantizeLinear of int8 be by itself.
        so.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_MAX_FOLDED))
        without = (*without, _WIDENS)
    if shared_arena:
        _register_arena()
        so.add_session_config_entry("session.use_env_allocators", "1")
    if not optimize:
        so.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
    elif without:
        so.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(without))
    providers = _choose(so, entry, asked, settings, model.parent if isinstance(model, Path) else None)
    # With the runtime's own fallback a session or run that fails is silently repeated on the CPU.
    try:
        if isinstance(model, Path) and hashes and optimize and entry.name == "cpu" and settings.get(OPTION) == "1":
            conditions = (sorted((dimensions or {}).items()), frozen, tuple(without))
            session = create_session(model, so, providers, hashes, conditions)
        else:
            source = model if isinstance(model, bytes) else str(model)
            session = runtime().InferenceSession(source, so, providers=providers, enable_fallback=0)
    except Exception as err:  # the runtime raises its own classes, one a status code
        lack = missing(entry)
        if lack is not None:
            raise LackError(f"provider '{entry.name}' cannot open {name} ({first_line(err)})", lack) from err
        raise ProviderError(f"provider '{entry.name}' cannot open {name}: {first_line(err)}.") from err
    obtained = session.get_providers()
    if not obtained or obtained[0] != entry.runtime_name:
        raise LackError(
            f"provider '{entry.name}' was asked for, but the session runs on {', '.join(obtained) or 'nothing'}: its "
            "libraries do not load here",
            missing(entry) or Lack((why_not_loaded(entry),), (entry.how_to_install,)),
        )
    opened = _placed(session, entry, settings)
    _require_placement(opened, name, strict=asked.strict)
    return opened


def run_options(opened: OpenSession, recording: int = -1) -> tuple[Any, ...]:
    """What a run is told of CUDA graphs: which one it records or repeats, -1: none; nothing where none are recorded."""
    if not opened.captures:
        return ()
    options = runtime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(recording))
    return (options,)


@contextmanager
def running(opened: OpenSession, graph: str) -> Iterator[None]:
    """Around a run of `graph`: what the runtime raises becomes a ProviderError that says what to do."""
    try:
        yield
    except OnnxftError:
        raise
    except Exception as err:  # the runtime raises its own classes, one a status code
        reason, name = first_line(err), opened.provider.name
        if any(sign in str(err).lower() for sign in _OUT_OF_MEMORY):
            raise ProviderError(
                f"provider '{name}' has not enough memory for the graph '{graph}' ({reason}). Lower --batch-size, and "
                "raise --accumulate by as much to keep the rows of an update."
            ) from err
        raise ProviderError(
            f"provider '{name}' fails in the graph '{graph}': {reason}. Try another provider (`onnxft doctor`)."
        ) from err


def _choose(
    so: Any, entry: Provider, asked: Execution, settings: dict[str, str], folder: Path | None
) -> list[Any] | None:
    """What the session is told of providers: a list where it is built in, devices in `so` where it is a plug-in."""
    unknown = [name for name in asked.options if entry.known_options and name not in entry.known_options]
    if unknown:
        raise ProviderError(
            f"provider '{entry.name}' has no option '{unknown[0]}'.{near(unknown[0], entry.known_options)}"
        )
    if settings.get(OPTION, "0") not in ("0", "1"):
        raise ProviderError(f"the provider option {OPTION} is '{settings[OPTION]}'; it is 0 or 1.")
    if is_builtin(entry):
        if asked.device and "device_id" not in settings:
            raise ProviderError(f"provider '{entry.name}' has one device, and device {asked.device} was asked for.")
        if entry.memory == "cuda":
            load_packages()
        if settings.get("trt_engine_cache_enable") == "1":
            settings |= engine_cache(folder)
        for name, value in settings.items() if entry.prefix else ():
            so.add_session_config_entry(entry.prefix + name, value)
        behind = [(p.runtime_name, p.options(asked)) for p in map(provider, entry.behind) if is_builtin(p)]
        return [
            (entry.runtime_name, {} if entry.prefix or entry.runtime_name == _CPU else settings),
            *behind,
            *([_CPU] if entry.runtime_name != _CPU else []),
        ]
    kind = settings.pop("device_type", entry.hardware).partition(".")[0].upper()
    devices = [d for d in plugin_devices(entry) if d.device.type.name == kind]
    if not devices:
        raise _absent(entry, kind)
    index = asked.device or 0
    if index >= len(devices):
        raise ProviderError(
            f"provider '{entry.name}' has {len(devices)} {kind} device{'s' if len(devices) > 1 else ''} here, and "
            f"device {index} was asked for (the first is 0)."
        )
    settings.pop("device_id", None)  # the device says it
    so.add_provider_for_devices([devices[index]], settings)
    return None


def _session_options(threads: int | None, dimensions: Mapping[str, int]) -> Any:
    so = runtime().SessionOptions()
    so.log_severity_level = 3  # warnings of the runtime speak of its internals; what matters is checked here
    # With it the second run takes one block for all activations, beside what the first run took for them.
    so.enable_mem_pattern = False
    # The threads of one session would go on waiting actively while those of the next, or the reading of data, need the
    # processor: with trunk and rest in turn, a step took half as long again.
    so.add_session_config_entry("session.force_spinning_stop", "1")
    if are_zero():
        so.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads is not None:
        so.intra_op_num_threads = threads
    if (prefix := _profile.get()) is not None:
        so.enable_profiling, so.profile_file_prefix = True, str(prefix)
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


def _placed(session: Any, entry: Provider, settings: dict[str, str]) -> OpenSession:
    """The session with what the runtime says about where its nodes are; nothing before onnxruntime 1.24."""
    names = {p.runtime_name: p.name for p in (*PROVIDERS.values(), entry)}
    counts: Counter[str] = Counter()
    fallback: dict[str, tuple[str, ...]] = {}
    parts = (
        session.get_provider_graph_assignment_info() if hasattr(session, "get_provider_graph_assignment_info") else ()
    )
    for part in parts:
        name, nodes = names.get(part.ep_name, part.ep_name), part.get_nodes()
        counts[name] += len(nodes)
        if name != entry.name:
            fallback[name] = (*fallback.get(name, ()), *(f"{n.name} ({n.op_type})" for n in nodes))
    return OpenSession(session, entry, dict(counts), settings, fallback)


def _require_placement(opened: OpenSession, model: str, *, strict: bool) -> None:
    """ProviderError where the provider took no node, or, where `strict`, not all."""
    entry, placed = opened.provider, opened.nodes
    if placed and entry.name not in placed:
        raise ProviderError(
            f"provider '{entry.name}' loads but takes no node of {model}; all would run on {', '.join(placed)}. "
            f"Use --provider {next(iter(placed))}."
        )
    nodes = [f"{node} on {other}" for other, names in opened.fallback.items() for node in names]
    named = ", ".join(nodes[:_NAMED]) + (f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else "")
    limits = f" '{entry.name}' does not take {entry.graph}." if entry.graph else ""
    if opened.captures and nodes:
        raise ProviderError(
            f"CUDA graphs need every node of {model} on '{entry.name}', where {len(nodes)} are not: {named}.{limits} "
            f"Leave {' and '.join(o for o in _CAPTURE if o in opened.options)} out."
        )
    if not strict or entry.name == "cpu":
        return
    if not placed:
        raise ProviderError(
            f"strict asks where each node runs, which onnxruntime {runtime().__version__} cannot tell. Install 1.24 or "
            "newer, or leave strict out."
        )
    if nodes:
        raise ProviderError(
            f"strict: {len(nodes)} of {sum(placed.values())} nodes of {model} are not on '{entry.name}': "
            f"{named}.{limits} Leave strict out to let them run there."
        )


def _absent(entry: Provider, kind: str) -> LackError:
    lack = missing(entry) or Lack((), (entry.how_to_install,))
    package = plugin_package(entry)
    if package is not None:
        lack = replace(lack, reasons=(f"{package} offers no {kind} device here", *lack.reasons))
    return LackError(f"provider '{entry.name}' is not available", lack)
