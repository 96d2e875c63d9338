"""Time per operator of a training step, from the runtime's own profile, in sessions of its own."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxft.benchmark.exchange import OperatorTime
from onnxft.runtime.providers import PROVIDERS
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sessions import profiling

SKIPPED_RUNS = 2
"""The first runs prepare weights and take memory."""
PROFILED_RUNS = 3

Event = Mapping[str, Any]


def session_operators(
    open_session: Callable[[], TrainSession], step: Callable[[TrainSession], object]
) -> tuple[OperatorTime, ...]:
    """Profile steps in a fresh session; the longest operator first, nothing where the runtime writes no profile.

    A provider that fuses the graph shows what it shows: one node.
    """
    with tempfile.TemporaryDirectory(prefix="onnxft-profile-") as folder:
        with profiling(Path(folder) / "profile"):
            session = open_session()
            try:
                for _ in range(SKIPPED_RUNS + PROFILED_RUNS):
                    step(session)
            finally:
                session.close()  # which writes the file
        return operator_times([json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.json"))])


def operator_times(profiles: Sequence[Sequence[Event]]) -> tuple[OperatorTime, ...]:
    """Sum over the nodes of a step, by operator and provider; each graph that it runs once has a profile of its own.

    The time of a node that runs others (Scan) is without theirs.
    """
    names = {p.runtime_name: p.name for p in PROVIDERS.values()}
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for events in profiles:
        runs = sorted(int(e["ts"]) for e in events if e.get("name") == "model_run")[SKIPPED_RUNS:]
        for event, own in _own_times(e for e in events if runs and _is_node(e) and int(e["ts"]) >= runs[0]):
            provider = str(event["args"].get("provider", ""))
            key = (str(event["args"].get("op_name", event["name"])), names.get(provider, provider))
            seconds[key] += own / 1e6 / len(runs)
            counts[key] += 1 / len(runs)
    times = (OperatorTime(*key, round(counts[key]), seconds[key]) for key in seconds)
    return tuple(sorted(times, key=lambda time: (-time.seconds, time.operator)))


def _is_node(event: Event) -> bool:
    """Runtimes before 1.18 also write how long a node waits before and after."""
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _own_times(events: Iterable[Event]) -> Iterable[tuple[Event, int]]:
    """(event, microseconds that it does not spend in events within it), one thread after the other."""
    own: list[tuple[Event, int]] = []
    around: list[tuple[int, int, int]] = []  # (thread, end, place in `own`) of events that have begun
    for event in sorted(events, key=lambda e: (int(e["tid"]), int(e["ts"]), -int(e["dur"]))):
        thread, start, length = int(event["tid"]), int(event["ts"]), int(event["dur"])
        while around and (around[-1][0] != thread or around[-1][1] <= start):
            around.pop()
        if around:
            outer, time = own[around[-1][2]]
            own[around[-1][2]] = (outer, time - length)
        around.append((thread, start + length, len(own)))
        own.append((event, length))
    return own
