"""The learning-rate range test."""

from __future__ import annotations

import csv
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_train_real import pictures
from training_fake_session import FakeSession, make_manifest, make_rows

from onnxft.cli.train import train
from onnxft.data.arrays import ArrayDataset
from onnxft.errors import ConfigError, DataError
from onnxft.training.config import TrainConfig
from onnxft.training.curves import can_plot
from onnxft.training.lr_range import LrRange, plot_lr_range, propose, smooth, sweep, to_csv
from onnxft.training.plan import Plan

RATES = np.logspace(-7, 1, 101)


def falling(middle, width=0.4):
    """Loss 2 falls to 0.5, steepest at `middle`, and grows without bounds behind 1."""
    fall = 1 / (1 + np.exp(-(np.log10(RATES) - math.log10(middle)) / width))
    return 2 - 1.5 * fall + 3 * RATES**2


CURVES = {
    "a slope": (falling(1e-3), 1e-3),
    "an earlier one": (falling(3e-5), 3e-5),
    "with noise": (falling(1e-3, 0.2) + np.random.default_rng(0).normal(0, 0.02, 101), 1e-3),
    # Steep until shortly before the least: a tenth of that is lower.
    "late": (np.where(RATES < 0.1, 2 - 15 * RATES, 0.5 + RATES), 0.1 / 10),
}


@pytest.mark.parametrize("case", CURVES)
def test_the_proposed_rate_of_a_known_curve(case):
    losses, expected = CURVES[case]
    assert math.log10(propose(RATES, losses)) == pytest.approx(math.log10(expected), abs=0.25)


FLAT = {
    "only rising": 1 + RATES,
    "noise alone": 2 + np.random.default_rng(1).normal(0, 0.3, 101),
    "two values": np.array([2.0, 1.0]),
    "nothing": np.array([]),
}


@pytest.mark.parametrize("case", FLAT)
def test_no_rate_is_proposed_where_none_lowers_the_loss(case):
    losses = FLAT[case]
    assert propose(RATES[: len(losses)], losses) is None


def test_smoothing_keeps_a_line_and_lags_nowhere():
    line = np.linspace(3, 1, 40)
    np.testing.assert_allclose(smooth(line), line)


def make(accumulate=1, **options):
    session = FakeSession(make_manifest(), seed=2)
    config = TrainConfig(accumulate=accumulate, epochs=2, seed=2, **options)
    return session, Plan.make(session, ArrayDataset(make_rows(17)), None, config)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rates_grow_exponentially_over_as_many_epochs_as_it_takes(accumulate):
    session, plan = make(accumulate, lr=0.5, schedule="onecycle")
    found = sweep(session, plan, low=1e-6, high=1e-2, number=30)
    np.testing.assert_allclose(found.rates, np.logspace(-6, -2, 30))
    assert [u["lr"] for u in session.updates] == pytest.approx(found.rates.tolist())
    assert not found.diverged
    assert np.isfinite(found.losses).all()


def test_a_session_is_as_before_bit_for_bit():
    session, plan = make(2)
    for batch in [make_rows(5)] * 3:
        session.step(batch, lr=0.1)
    before = session.weight.copy(), session.momentum.copy(), session.step_count
    found = sweep(session, plan, number=50)
    assert len(session.updates) > 10
    assert found.diverged or len(found.rates) == 50
    np.testing.assert_array_equal(session.weight, before[0])
    np.testing.assert_array_equal(session.momentum, before[1])
    assert session.step_count == before[2]


def test_it_stops_when_the_loss_is_four_times_its_least():
    session, plan = make()
    healthy = session.accumulate

    def accumulate(batch):
        result = healthy(batch)
        result.loss = 1.0 if len(session.updates) < 20 else 100.0
        return result

    session.accumulate = accumulate
    found = sweep(session, plan, number=60)
    assert found.diverged
    assert len(found.rates) == 21


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_ends_it_without_an_error(accumulate):
    session, plan = make(accumulate)
    healthy = session.accumulate

    def fail(batch):
        result = healthy(batch)
        if len(session.updates) == 7:
            result.loss = math.nan
        return result

    session.accumulate = fail
    before = session.weight.copy()
    found = sweep(session, plan, number=60)
    assert (found.diverged, len(found.rates)) == (True, 7)
    np.testing.assert_array_equal(session.weight, before)


@pytest.mark.parametrize("options", [{"low": 1.0, "high": 0.1}, {"low": 0.0}, {"number": 2}], ids=str)
def test_an_empty_range_is_refused(options):
    with pytest.raises(ConfigError, match="a sweep of"):
        sweep(*make(), **options)


def test_a_real_session_is_as_before_and_learns_with_what_is_proposed(digits_artifact):
    from onnxft.runtime.session import TrainSession

    data = ArrayDataset(pictures(80, 0))
    with TrainSession(digits_artifact, threads=1) as session:
        for batch in [pictures(8, 3)] * 2:
            session.step(batch, lr=1e-3)
        plan = Plan.make(session, data, None, TrainConfig(threads=1))
        before = session.parameters, session._engine.state(), session.step_count
        found = sweep(session, plan)
        for own, kept in zip((session.parameters, session._engine.state()), before, strict=False):
            assert own.keys() == kept.keys()
            assert all(np.array_equal(own[name], kept[name]) for name in own)
        assert session.step_count == before[2]
    assert found.proposed is not None
    assert 1e-5 < found.proposed < 1e-1


# ----- files and command


def test_the_table_holds_what_was_tried():
    found = LrRange(RATES[:5], np.arange(5.0), 1e-3, False)
    rows = list(csv.DictReader(to_csv(found).decode().splitlines()))
    assert [float(row["lr"]) for row in rows] == RATES[:5].tolist()
    assert [float(row["loss"]) for row in rows] == [0, 1, 2, 3, 4]
    assert list(rows[0]) == ["step", "lr", "loss", "smoothed_loss"]


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
@pytest.mark.parametrize("number", [0, 1, 101])
def test_the_picture_can_always_be_drawn(number):
    found = LrRange(RATES[:number], falling(1e-3)[:number], None if number < 3 else 1e-3, True)
    assert plot_lr_range(found).startswith(b"\x89PNG")
    assert plot_lr_range(replace(found, proposed=0.01)) != plot_lr_range(found)


@pytest.fixture
def command(digits_artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("my data.npz", **pictures(40, 0))
    words = [str(digits_artifact), "--data", "my data.npz", "--threads", "1", "--lr", "0.5"]
    return lambda *more: CliRunner().invoke(train, [*words, *more], catch_exceptions=False)


def test_the_command_proposes_and_prints_the_next(command, digits_artifact):
    result = command("--find-lr", "--epochs", "1")
    assert result.exit_code == 0, result.output
    out = Path("runs") / f"{digits_artifact.name}-lr-1"
    assert {p.name for p in out.iterdir()} == {"lr_range.csv", *(["lr_range.png"] if can_plot() else [])}
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Next: onnxft train ")]
    words = shlex.split(line.removeprefix("Next: onnxft train "))
    rate = words[-1]
    assert words == [str(digits_artifact), "--data", "my data.npz", "--threads", "1", "--epochs", "1", "--lr", rate]
    assert CliRunner().invoke(train, words).exit_code == 0
    assert not list(Path().glob("runs/*-lr-2"))


def test_the_command_never_writes_into_another(command):
    Path("taken").mkdir()
    (Path("taken") / "file").touch()
    with pytest.raises(ConfigError, match="'taken' exists already"):
        command("--find-lr", "--run", "taken")
    assert command("--find-lr", "--resume").exit_code == 2


BROKEN = """
import numpy as np

class Two:
    def __len__(self):
        return 2

    def __iter__(self):
        with np.load("my data.npz") as data:
            yield {name: array[:8] for name, array in data.items()}
        raise OSError("the disk is gone")

two = Two()
"""


def test_data_that_breaks_in_the_sweep_is_named_and_nothing_is_written(command):
    Path("code.py").write_text(BROKEN)
    with pytest.raises(DataError, match=r"the disk is gone.* batch 2 of epoch 1; nothing was written\. Mend the data"):
        command("--data", "code.py:two", "--find-lr")
    assert not Path("runs").exists()


def test_the_command_begins_with_the_weights_of_the_run_to_come(command, digits_artifact):
    assert command("--epochs", "2", "--lr", "0.003", "--run", "before").exit_code == 0
    losses = []
    for name, more in (("own", []), ("warm", ["--weights", "before"])):
        assert command("--find-lr", "--run", name, *more).exit_code == 0
        with (Path(name) / "lr_range.csv").open(newline="") as file:
            losses.append(float(next(csv.DictReader(file))["loss"]))
    assert losses[1] < losses[0]
