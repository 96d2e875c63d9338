"""What every provider must pass, with torch as the reference.

Runs on the providers that load here. `ONNXFT_TEST_PROVIDERS=cpu,openvino,openvino:bfloat16` demands those: one that
does not load is a failure then, not a skip. A precision that this machine cannot compute in is a skip that says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import onnxft
from onnxft.errors import ProviderError
from onnxft.runtime.execution import Execution, Precision
from onnxft.runtime.precision import require_precision
from onnxft.runtime.probe import train_probe
from onnxft.runtime.providers import PROVIDERS

pytest.importorskip("torch", reason="torch, the reference, is not installed here")

from conformance_subjects import ROWS, Subject
from tolerances import side


def asked(names: str) -> list[Execution]:
    """Of `provider[:precision]`, separated by commas."""
    parts = (name.partition(":") for name in names.split(",") if name)
    return [Execution(provider, precision or "float32") for provider, _, precision in parts]  # type: ignore[arg-type]


DEMANDED = asked(os.environ.get("ONNXFT_TEST_PROVIDERS", ""))
TRIED = DEMANDED or asked("cpu,openvino,openvino:bfloat16")


@pytest.fixture(params=TRIED, ids=side)
def execution(request: pytest.FixtureRequest) -> Execution:
    """Each provider in each precision."""
    return runs_here(request.param)


@pytest.fixture(params=[e.provider for e in TRIED if e.precision == "float32"])
def provider(request: pytest.FixtureRequest) -> str:
    """Each provider that is tried in float32."""
    return runs_here(Execution(request.param)).provider


def runs_here(execution: Execution) -> Execution:
    """The same, or a skip that says why not."""
    try:
        require_precision(PROVIDERS[execution.provider], execution)
    except ProviderError as err:
        pytest.skip(str(err))
    reason = why_not(execution.provider, execution.precision)
    if reason and (DEMANDED or execution.provider == "cpu"):
        raise ProviderError(reason)
    if reason:
        pytest.skip(f"{side(execution)} does not run here: {reason}")
    return execution


@cache
def why_not(provider: str, precision: Precision) -> str:
    """Why a training step does not run; empty where it does."""
    try:
        train_probe(Execution(provider, precision))
    except ProviderError as err:
        return str(err)
    return ""


@pytest.fixture(scope="session")
def opened(artifact_of: Callable[..., Path]) -> Callable[..., onnxft.TrainSession]:
    """opened(subject, execution, optimizer="adamw", **options): a session on the subject's artifact."""

    def make(subject: Subject, execution: Execution, optimizer: str = "adamw", **options: float) -> onnxft.TrainSession:
        artifact = artifact_of(subject, optimizer, **options)
        return onnxft.TrainSession(artifact, execution.provider, precision=execution.precision, threads=2)

    return make


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(subject, optimizer, options) -> artifact directory, each exported once."""
    made: dict[Any, Path] = {}
    folder = tmp_path_factory.mktemp("conformance")
    typed = {e.precision for e in TRIED if PROVIDERS[e.provider].lowers_by == "graph"} - {"float32"}

    def artifact(subject: Subject, optimizer: str = "adamw", **options: float) -> Path:
        key = (subject.name, optimizer, tuple(options.items()))
        if key not in made:
            made[key] = onnxft.export(
                *subject.factory(), folder / f"{subject.name}-{len(made)}", loss=subject.loss, optimizer=optimizer,
                optimizer_options=options, batch_size=ROWS, dropout=False, frozen=subject.frozen,
                train_batchnorm=subject.trained_norms, precision=sorted(typed),
            )  # fmt: skip
        return made[key]

    return artifact
