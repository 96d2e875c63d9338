"""The side of an execution provider: the artifact's step in a `TrainSession`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from onnxft.arrays import Array, Arrays
from onnxft.benchmark.config import Scenario
from onnxft.benchmark.exchange import KeptFeatures, Measurement, Request
from onnxft.benchmark.gpu_memory import gpu_bytes
from onnxft.benchmark.peaks import measure_peaks, session_peaks
from onnxft.benchmark.profile import session_operators
from onnxft.benchmark.scenario import measure
from onnxft.errors import ConfigError, OnnxftError
from onnxft.manifest import GraphRole
from onnxft.runtime.engine import Placement
from onnxft.runtime.execution import Execution
from onnxft.runtime.providers import PROVIDERS
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sessions import OpenSession, open_session

FEATURE_CALLS = 5
"""Calls that are timed, after the first, which opens the trunk."""


def run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    """Measure the side; the measurement, and {parameter: gradient} or {output: array} at the initial parameters.

    An inference is a prediction of the session that trains: it holds the training graph too, and its evaluation graph
    is opened by the first step. A step on kept features is made by the session that computed them, as in a run: the
    trunk stays open and counts in the memory.

    ConfigError where the scenario needs features and the artifact has none.
    """
    start = time.perf_counter()
    session = _open(request)
    build_seconds = time.perf_counter() - start
    batch: Arrays = random_batch(session.manifest, request.batch_size, request.config.seed)
    scenario, trains = request.config.scenario_of(request.side), request.config.trains
    inputs = {port.name: batch[port.name] for port in session.manifest.inputs}
    kept = None
    if scenario == "cached":
        batch, kept = keep_features(session, batch)

    def train() -> float:
        return session.step(batch, lr=request.config.lr).loss

    def predict() -> float:
        session.predict(inputs)
        return 0.0  # no loss is computed

    times = measure(train if trains else predict, request.config)
    # Of the process that computes: onnxruntime-training's is another than this one.
    peak, gpu = session.peak_bytes, gpu_bytes()
    placement = session.placement
    arrays: dict[str, Array] = {} if trains else dict(session.predict(inputs))
    loss = times.loss if trains else session.evaluate(batch).loss
    session.close()
    asked = replace(_asked(request), provider=placement.obtained, strict=False)
    gradients_error = None
    if trains:
        arrays, gradients_error = _initial_gradients(request, batch)
    nodes, fallback = step_nodes(placement, scenario)
    measurement = Measurement(
        provider_requested=placement.requested,
        provider_obtained=placement.obtained,
        nodes=nodes,
        fallback_nodes=sum(map(len, fallback.values())) if nodes else None,
        versions=placement.versions,
        build_seconds=build_seconds,
        first_step_seconds=times.first_step,
        warmup_seconds=times.warmup,
        step_seconds=times.steps,
        peak_rss_bytes=peak,
        loss=loss,
        options=placement.options,
        precision=placement.precision,
        fallback=fallback,
        peak_gpu_bytes=gpu,
        features=kept,
        gradients_error=gradients_error,
        # After the steps and the reading of the memory, so that they disturb neither.
        peaks=measure_peaks(lambda: session_peaks(partial(_open_model, asked), request.threads)),
        operators=session_operators(partial(_open, request), _step_of(request, batch, inputs))
        if request.config.profile
        else (),
    )
    return measurement, arrays


def keep_features(
    session: TrainSession, batch: Arrays, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, Array], KeptFeatures]:
    """The batch with features in the place of the inputs, and what they take; ConfigError where there is no trunk."""
    manifest = session.manifest
    if not manifest.features:
        why = manifest.whole or "nothing that is frozen and multiplies lies before all that is trained."
        raise ConfigError(
            f"the artifact '{manifest.name}' has no features to keep: {why} Measure it with the scenario 'train'."
        )
    inputs = {port.name: batch[port.name] for port in manifest.inputs}
    features = session.features(inputs)
    times: list[float] = []
    for _ in range(FEATURE_CALLS):
        start = clock()
        session.features(inputs)
        times.append(clock() - start)
    rows = len(next(iter(features.values())))
    kept = KeptFeatures(median(times) / rows, sum(array.nbytes for array in features.values()) // rows)
    return {**features, **{name: array for name, array in batch.items() if name not in inputs}}, kept


def _step_of(request: Request, batch: Arrays, inputs: Arrays) -> Callable[[TrainSession], object]:
    if request.config.trains:
        return lambda session: session.step(batch, lr=request.config.lr).loss
    return lambda session: session.predict(inputs)


def step_nodes(placement: Placement, scenario: Scenario) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """{provider: nodes} and {another provider: its nodes by name} of all graphs that a step runs.

    Empty where the runtime does not tell.
    """
    nodes: Counter[str] = Counter()
    fallback: dict[str, tuple[str, ...]] = {}
    for role in _STEP_ROLES[scenario]:
        nodes.update(placement.nodes.get(role, {}))
        for name, fallen in placement.fallback.get(role, {}).items():
            fallback[name] = (*fallback.get(name, ()), *fallen)
    return dict(nodes), fallback


# A step runs `train`, or `gradients` and `update` (see `updates_apart`).
_STEP_ROLES: dict[Scenario, tuple[GraphRole, ...]] = {
    "train": ("trunk", "train", "gradients", "update"),
    "cached": ("train", "gradients", "update"),
    "inference": ("trunk", "eval"),
}


def _open(request: Request) -> TrainSession:
    asked = _asked(request)
    return TrainSession(
        Path(request.artifact), asked.provider, precision=asked.precision, device=asked.device, threads=asked.threads,
        provider_options=asked.options, strict=asked.strict, batch_size=request.batch_size, seed=request.config.seed,
    )  # fmt: skip


def _asked(request: Request) -> Execution:
    side, config = request.side, request.config
    if side.kind == "baseline":
        # That of onnxruntime-training runs an artifact of its own, on the only provider that it has.
        return Execution(threads=request.threads)
    has_devices = side.runs in PROVIDERS and PROVIDERS[side.runs].hardware != "CPU"
    options = config.provider_options.get(side.runs, {})
    device = config.device if has_devices else None
    return Execution(side.runs, side.precision, device, request.threads, options, config.strict)


def _open_model(asked: Execution, model: bytes, dimensions: Mapping[str, int]) -> OpenSession:
    return open_session(model, asked, dimensions=dimensions)


def _initial_gradients(request: Request, batch: Arrays) -> tuple[dict[str, Array], str | None]:
    """Gradients in a fresh session: keeping the initial parameters would count in the measured memory."""
    session = _open(request)
    try:
        return dict(session.gradients(dict(batch))), None
    except OnnxftError as err:
        # The times stand without the comparison; its absence is reported.
        return {}, str(err)
    finally:
        session.close()
