"""Artifacts that several tests read, each exported once a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onnxft.api import Plan

MODELS = Path(__file__).with_name("models.py")


@pytest.fixture(scope="session")
def digits_source() -> str:
    return f"{MODELS}:digits"


@pytest.fixture(scope="session")
def digits_artifact(tmp_path_factory: pytest.TempPathFactory, digits_source: str) -> Path:
    """A small convolutional network for 28 × 28 pictures and 10 classes; input `image`, batch 8, AdamW."""
    pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")
    import onnxft

    return onnxft.export(
        digits_source, directory=tmp_path_factory.mktemp("artifacts") / "digits", input_names=["image"]
    )


@pytest.fixture(scope="session")
def planned() -> Callable[..., Plan]:
    """planned(factory of models.py, dtype="float32", ...): the plan, made once a run; dtype is of the whole model."""
    torch = pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")
    import models

    from onnxft.api import plan

    @cache
    def make(
        name: str,
        dtype: str = "float32",
        loss: str = "cross_entropy",
        dropout: bool = True,
        train_batchnorm: tuple[str, ...] = (),
    ) -> Plan:
        module, inputs = getattr(models, name)()
        inputs = tuple(x.to(getattr(torch, dtype)) for x in inputs)
        with pytest.MonkeyPatch.context() as patch:
            if dtype == "float64":  # onnxruntime has no Conv in float64; those who ask for it compare with torch
                patch.setattr("onnxft.exporters.pytorch.check_outputs", lambda *args: None)
            return plan(
                module.to(getattr(torch, dtype)), inputs, loss=loss, dropout=dropout, name=name,
                train_batchnorm=train_batchnorm,
            )  # fmt: skip

    return make


@pytest.fixture
def updates_apart(monkeypatch: pytest.MonkeyPatch) -> str:
    """A provider that hands over what it computes, as OpenVINO does, and has its updates on the cpu."""
    from onnxft.runtime.providers import PROVIDERS, Provider

    monkeypatch.setitem(
        PROVIDERS, "apart", Provider("apart", "CPUExecutionProvider", ("onnxft[cpu]",), updates_on="cpu")
    )
    return "apart"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, planned: Callable[..., Plan]) -> Callable[..., Path]:
    """exported(factory of models.py, optimizer="adamw", batch_size=16, ...): an artifact, written once a run.

    One of the generator "ort-training" skips the test where its environment is not there.
    """
    from onnxft.api import Plan
    from onnxft.errors import ProviderError
    from onnxft.ort_training_environment import find_python
    from onnxft.step.optimizers import describe_optimizer

    @cache
    def make(
        name: str,
        optimizer: str = "adamw",
        batch_size: int = 16,
        momentum: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        generator: str = "native",
        *,
        standalone: bool = False,
        **options: object,
    ) -> Path:
        if generator == "ort-training":
            try:
                find_python()
            except ProviderError as err:
                pytest.skip(str(err))
        made = planned(name, **options)
        given = {key: value for key, value in (("momentum", momentum), ("eps", eps)) if value is not None}
        described = describe_optimizer(optimizer, given, weight_decay)
        directory = tmp_path_factory.mktemp("artifacts") / name
        more = {"standalone": True} if standalone else {}
        Plan(made.forward, made.selection, made.loss, described).write(
            directory, batch_size=batch_size, generator=generator, **more
        )
        return directory

    return make
