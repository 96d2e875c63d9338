"""Graphs as ONNX Runtime has optimized them for the CPU, kept in the folder `cache` of an artifact.

Optimizing a large training graph takes longer than all else that opens its session. What is kept is the optimized graph
with the constants that were computed; frozen weights that were left as they are stay in the artifact. A kept graph is
read only under the conditions under which it was made, and bears a code that only this user can make. Numbers, order of
execution and memory are those of the graph that it was made from.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from onnxft import __version__
from onnxft.files import new_file
from onnxft.runtime.engine_cache import FOLDER, sealed, user_secret
from onnxft.runtime.execution_order import with_order_kept
from onnxft.runtime.providers import first_line, runtime

OPTION = "graph_cache_enable"
"""Option of the provider `cpu`; 1: graphs are kept and read."""
MAX_BYTES = 2**28
"""Of all graphs that an artifact keeps; those used least recently make room, and a larger one is not kept."""
MIN_BYTES = 2**16
"""Of a graph's file: a smaller one is optimized about as fast as it would be read."""
_CODE_BYTES = hashlib.sha256().digest_size
_CPU_INFO = Path("/proc/cpuinfo")
_IDENTIFYING = ("model name", "flags", "Features", "CPU implementer", "CPU part")
"""Lines of /proc/cpuinfo that say what a processor can do."""


def create_session(
    model: Path, options: Any, providers: list[Any] | None, hashes: Mapping[str, str], conditions: object
) -> Any:
    """An inference session of a graph of an artifact on the CPU, from the kept optimized graph where there is one.

    A small graph is not kept. Where none can be (a directory that is read only, a full disk), the session is opened
    without.

    Args:
        model: the file of the graph.
        options: the runtime's session options, without dimensions or optimizations that `conditions` does not name.
        providers: what the session is told of providers.
        hashes: {file of the artifact: sha256}, which the caller has checked.
        conditions: what else decides how the graph is optimized, equal where its `repr` is.
    """
    if model.stat().st_size >= MIN_BYTES:
        try:
            folder = sealed(model.parent / FOLDER / "graphs", "Sessions open without optimized graphs.")
            place = folder / f"{_key(model, hashes, conditions)}.onnx"
            session = _from_kept(place, model, options, providers)
            return _kept(place, model, options, providers) if session is None else session
        except Exception as err:  # the runtime raises its own classes: opened without, it shows what is wrong
            _warn("'%s' is opened without a kept graph: %s", model.name, first_line(err))
    return runtime().InferenceSession(str(model), options, providers=providers, enable_fallback=0)


def _from_kept(place: Path, model: Path, options: Any, providers: list[Any] | None) -> Any:
    """A session of the kept graph; None where there is none, or a damaged one."""
    try:
        size = place.stat().st_size
        with place.open("rb") as file:
            graph, code = file.read(max(size - _CODE_BYTES, 0)), file.read()
    except FileNotFoundError:
        return None
    if not hmac.compare_digest(hmac.digest(_code_key(place), graph, hashlib.sha256), code):
        _warn("'%s', kept for '%s', is damaged: it is made anew.", place, model.name)
        return None
    with suppress(OSError):  # one who may only read it
        os.utime(place)
    ort = runtime()
    level = options.graph_optimization_level
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    try:
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    finally:
        options.graph_optimization_level = level
    session._model_bytes = None  # kept for a fallback that is off, and as large as the file
    return session


def _kept(place: Path, model: Path, options: Any, providers: list[Any] | None) -> Any:
    """A session of the graph, which is kept as the runtime has optimized it."""
    with new_file(place, durable=False) as file:
        options.optimized_model_filepath = file.name
        try:
            session = runtime().InferenceSession(str(model), options, providers=providers, enable_fallback=0)
        finally:
            options.optimized_model_filepath = ""
        code = hmac.new(_code_key(place), digestmod=hashlib.sha256)
        for part in with_order_kept(Path(file.name).read_bytes()):
            code.update(part)
            file.write(part)
        file.write(code.digest())
    _make_room(place.parent)
    return session


def _warn(words: str, *what: object) -> None:
    import logging  # which takes a while

    logging.getLogger(__name__).warning(words, *what)


def _make_room(folder: Path) -> None:
    """Delete the graphs that were not used for the longest time, until the others fit."""
    found = []
    for path in folder.glob("*.onnx*"):  # those of killed processes end with .part
        with suppress(FileNotFoundError):  # another process made room
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    room = MAX_BYTES
    for _, size, path in sorted(found, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)


def _key(model: Path, hashes: Mapping[str, str], conditions: object) -> str:
    """The name of an optimized graph: all that it depends on, as one number."""
    ort = runtime()
    versions = __version__, ort.__version__, ort.get_build_info(), _processor()
    return hashlib.sha256(repr((versions, model.name, sorted(hashes.items()), conditions)).encode()).hexdigest()


def _code_key(place: Path) -> bytes:
    """So that a graph under another graph's name is refused too."""
    return user_secret() + place.name.encode()


@cache
def _processor() -> tuple[str, ...]:
    """What the processors of this machine can do, on which layouts of convolutions depend."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.machine(), platform.processor()
    return platform.machine(), *sorted({line for line in lines if line.startswith(_IDENTIFYING)})
