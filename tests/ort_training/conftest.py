"""Artifacts of the ort-training generator and torch's numbers for them, each made once a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ort_training_models import BATCH_SIZE, CASES, choose, make_batches, make_forward, torch_reference

from onnxft.errors import ProviderError
from onnxft.generators.ort_training.generate import generate
from onnxft.manifest import SAMPLE_WEIGHTS
from onnxft.manifest_file import read_manifest
from onnxft.ort_training_environment import find_python
from onnxft.runtime.execution import Execution
from onnxft.runtime.ort_training.engine import OrtTrainingEngine


@pytest.fixture(scope="session")
def ort_python() -> str:
    """The interpreter of the environment with onnxruntime-training."""
    try:
        return find_python()
    except ProviderError as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def ort_artifact(ort_python: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """ort_artifact(case of ort_training_models, standalone=False): its artifact."""

    @cache
    def make(name: str, *, standalone: bool = False) -> Path:
        case, directory = CASES[name], tmp_path_factory.mktemp("ort-training") / name
        generate(
            make_forward(case), choose(*case.trainable), case.loss, case.optimizer, directory,
            batch_size=BATCH_SIZE, python=ort_python, standalone=standalone,
        )  # fmt: skip
        return directory

    return make


@pytest.fixture(scope="session")
def reference() -> Callable[[str], dict[str, np.ndarray]]:
    """reference(case): torch's losses, first gradients and last parameters over the case's batches."""
    return cache(lambda name: torch_reference(CASES[name]))


@pytest.fixture(scope="session")
def batch_of() -> Callable[[str, int], dict[str, np.ndarray]]:
    """batch_of(case, step): {x, labels, sample_weights}, a copy; the weights are 1."""
    made = cache(lambda name: make_batches(CASES[name]))
    weights = np.ones(BATCH_SIZE, np.float32)
    return lambda name, step: {n: array.copy() for n, array in {**made(name)[step], SAMPLE_WEIGHTS: weights}.items()}


@pytest.fixture(params=["weighted", "standalone"])
def form(request: pytest.FixtureRequest) -> str:
    """The form of the artifacts of `make_engine`; parametrize it for one of them."""
    return str(request.param)


@pytest.fixture
def make_engine(ort_artifact: Callable[..., Path], form: str) -> Iterator[Callable[..., OrtTrainingEngine]]:
    """make_engine(case, directory=None, asked=None, ...): an open engine, closed after the test."""
    opened: list[OrtTrainingEngine] = []

    def make(
        case: str, directory: Path | None = None, asked: Execution | None = None, **options: Any
    ) -> OrtTrainingEngine:
        place = directory or ort_artifact(case, standalone=form == "standalone")
        engine = OrtTrainingEngine(place, read_manifest(place), asked or Execution(threads=1), **options)
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()
