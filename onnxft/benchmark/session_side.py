"""The side of an execution provider: the artifact's training step in a `TrainSession`."""

from __future__ import annotations

import time
from pathlib import Path

from onnxft.benchmark.batch import TRAIN_ROLES, random_batch
from onnxft.benchmark.exchange import Measurement, Request
from onnxft.benchmark.scenario import measure, peak_rss_bytes
from onnxft.errors import OnnxftError
from onnxft.runtime.engine import Array, Arrays, Placement
from onnxft.runtime.session import TrainSession


def run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    """Measure the side; the measurement and {parameter: gradient} at the initial parameters."""
    start = time.perf_counter()
    session = _open(request)
    build_seconds = time.perf_counter() - start
    batch = random_batch(session.manifest, request.batch_size, request.config.seed)
    times = measure(lambda: session.step(batch, lr=request.config.lr).loss, request.config)
    peak = peak_rss_bytes()
    placement = session.placement
    session.close()
    gradients, gradients_error = _initial_gradients(request, batch)
    nodes = step_nodes(placement)
    measurement = Measurement(
        provider_requested=placement.requested,
        provider_obtained=placement.obtained,
        nodes=nodes,
        fallback_nodes=sum(n for name, n in nodes.items() if name != placement.obtained) if nodes else None,
        versions=placement.versions,
        build_seconds=build_seconds,
        first_step_seconds=times.first_step,
        warmup_seconds=times.warmup,
        step_seconds=times.steps,
        peak_rss_bytes=peak,
        loss=times.loss,
        options=placement.options,
        gradients_error=gradients_error,
    )
    return measurement, gradients


def step_nodes(placement: Placement) -> dict[str, int]:
    """{provider: nodes} of the graph that a training step runs."""
    for role in TRAIN_ROLES:
        if role in placement.nodes:
            return placement.nodes[role]
    return {}


def _open(request: Request) -> TrainSession:
    return TrainSession(
        Path(request.artifact),
        provider=request.side.name,
        threads=request.threads,
        batch_size=request.batch_size,
        seed=request.config.seed,
    )


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
