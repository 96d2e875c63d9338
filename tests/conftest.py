"""Artifacts that several tests read, each exported once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

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
