from __future__ import annotations

import pytest
from training_fake_session import FakeSession, make_manifest, make_rows

from onnxft.data.arrays import ArrayDataset
from onnxft.training.config import TrainConfig
from onnxft.training.curves import can_plot
from onnxft.training.loop import train


class Runner:
    """Runs the loop with a fresh fake session over 17 rows of data and 9 of validation, unless told otherwise."""

    def __init__(self, root):
        self.root = root
        self.session = None

    def __call__(
        self, name="run", *, data=None, val="same kind", manifest=None, session=None, progress=None, resume=False,
        **config,
    ):  # fmt: skip
        options = TrainConfig(**config)
        self.session = session or FakeSession(
            manifest or make_manifest(), batch_size=options.batch_size, seed=options.seed
        )
        data = make_rows(17) if data is None else data
        val = make_rows(9, seed=1) if val == "same kind" else val
        return train(
            self.session,
            ArrayDataset(data, "the training data"),
            None if val is None else ArrayDataset(val, "the validation data"),
            options,
            self.root / name,
            progress,
            resume=resume,
        )


@pytest.fixture
def drawn():
    """For a test that wants the pictures of its runs."""
    return can_plot()


@pytest.fixture(autouse=True)
def not_drawn(request, monkeypatch):
    """Pictures take longer than a whole run of the fake session."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("onnxft.training.records.can_plot", lambda: False)


@pytest.fixture
def run_loop(tmp_path):
    return Runner(tmp_path)
