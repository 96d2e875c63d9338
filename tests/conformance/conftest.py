"""What every provider must pass, with torch as the reference.

Runs on the providers that load here. `ONNXFT_TEST_PROVIDERS=cpu,openvino` demands those: one that does
not load is a failure then, not a skip.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxft
from onnxft.errors import ProviderError
from onnxft.runtime.doctor import open_probe

pytest.importorskip("torch", reason="torch, the reference, is not installed here")

from conformance_subjects import ROWS, Subject

DEMANDED = tuple(filter(None, os.environ.get("ONNXFT_TEST_PROVIDERS", "").split(",")))


@pytest.fixture(params=DEMANDED or ("cpu", "openvino"))
def provider(request: pytest.FixtureRequest) -> str:
    name = request.param
    try:
        open_probe(name)
    except ProviderError as err:
        if DEMANDED or name == "cpu":
            raise
        pytest.skip(f"provider '{name}' does not run here: {err}")
    return name


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(subject, optimizer, options) -> artifact directory, each exported once."""
    made: dict[Any, Path] = {}
    folder = tmp_path_factory.mktemp("conformance")

    def artifact(subject: Subject, optimizer: str = "adamw", **options: float) -> Path:
        key = (subject.name, optimizer, tuple(options.items()))
        if key not in made:
            made[key] = onnxft.export(
                *subject.factory(), folder / f"{subject.name}-{len(made)}", loss=subject.loss, optimizer=optimizer,
                optimizer_options=options, batch_size=ROWS, dropout=False, frozen=subject.frozen,
                train_batchnorm=subject.trained_norms,
            )  # fmt: skip
        return made[key]

    return artifact
