from __future__ import annotations

import csv
import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_fake_session import FakeSession, StopAfter, make_manifest, make_rows

from onnxft.data.arrays import ArrayDataset
from onnxft.errors import ArtifactError, ConfigError, DataError, DivergedError
from onnxft.manifest import Parameter, ParameterGroup
from onnxft.training.config import TrainConfig
from onnxft.training.plan import Plan
from onnxft.yaml_file import read_yaml

FAST = {"lr": 0.1, "epochs": 3}


def table(run, name="results.csv"):
    with (run.directory / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_records_itself(run_loop):
    run = run_loop(**FAST)
    rows = table(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows] == ["0", "4", "8", "12"]
    assert rows[0]["lr"] == rows[0]["loss"] == ""
    assert float(rows[3]["loss"]) < float(rows[1]["loss"])
    assert set(rows[0]) == {
        "epoch", "step", "lr", "loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1",
        "val_auc",
    }  # fmt: skip
    assert (run.end, run.split, run.metric, run.epochs) == ("complete", "val", "balanced_accuracy", 3)
    assert run.after["balanced_accuracy"] > run.before["balanced_accuracy"]
    assert read_yaml(run.directory / "config.yaml") == TrainConfig(**FAST).to_dict()
    environment = json.loads((run.directory / "env.json").read_text())
    assert environment["placement"]["nodes"] == {"train": {"cpu": 7}}
    assert environment["versions"]["onnxruntime"] == "fake"
    assert all((run.directory / name).exists() for name in run.files)
    assert len(table(run, "timings.csv")) == 4


def test_best_and_last_weights_and_the_model_of_the_best(run_loop):
    run = run_loop(lr=40.0, epochs=4, metric="loss")
    rows = table(run)
    losses = [float(row["val_loss"]) for row in rows]
    assert run.best_epoch == int(np.argmin(losses)) != 4, "the rate is meant to be too high"
    best = load_file(run.directory / "weights" / "best.safetensors")["weight"]
    last = load_file(run.directory / "weights" / "last.safetensors")["weight"]
    np.testing.assert_array_equal(last, run_loop.session.weight)
    assert not np.array_equal(best, last)
    assert (run.directory / "model.onnx").read_bytes() == best.tobytes()
    assert run.after["loss"] == min(losses)


def test_equal_runs_write_equal_results(run_loop):
    first, second = run_loop("a", **FAST), run_loop("b", **FAST)
    for name in ("results.csv", "weights/best.safetensors", "model.onnx"):
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()
    other = run_loop("c", **FAST, seed=1)
    assert (other.directory / "results.csv").read_bytes() != (first.directory / "results.csv").read_bytes()


def test_options_reach_the_session(run_loop):
    run_loop(lr=0.5, epochs=2, schedule="linear", weight_decay=0.2, clip_norm=3.0, clip_value=4.0)
    updates = run_loop.session.updates
    assert [u["lr"] for u in updates] == pytest.approx([0.5 * (1 - t / 8) for t in range(8)])
    assert {(u["weight_decay"], u["max_norm"], u["max_value"]) for u in updates} == {(0.2, 3.0, 4.0)}
    run_loop("defaults", epochs=1)
    assert run_loop.session.updates[0] == {
        "lr": 1e-3, "weight_decay": None, "max_norm": math.inf, "max_value": math.inf,
    }  # fmt: skip


def test_accumulation_flushes_at_the_end_of_an_epoch(run_loop):
    run = run_loop(lr=0.1, epochs=2, batch_size=3, accumulate=4)
    assert run_loop.session.group_sizes == [4, 2, 4, 2]
    assert [row["step"] for row in table(run)] == ["0", "2", "4"]


def test_the_mean_loss_counts_rows_not_batches(run_loop):
    # The weights stand still, so that the mean is known: that of all rows.
    run = run_loop(lr=1e-30, epochs=1, val=None)
    row = table(run)[1]
    assert float(row["loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-9)
    assert run.split == "train"


def test_sample_weights_weight_the_mean_loss(run_loop):
    rows = make_rows(17)
    rows["labels"] = np.where(np.arange(17) < 8, 0, 1)
    run = run_loop(lr=1e-30, epochs=1, val=None, data={**rows, "sample_weights": np.linspace(0.1, 2, 17)})
    assert float(table(run)[1]["loss"]) == pytest.approx(float(table(run)[1]["train_loss"]), rel=1e-6)


def test_a_short_batch_is_left_out_where_rows_cannot_be_weighted(run_loop):
    session = FakeSession(make_manifest(), supports_weights=False)
    run_loop(session=session, **FAST)
    assert [len(batch["x"]) for batch in session.batches] == [5, 5, 5] * 3


def test_values_are_measured_and_chosen_by_loss(run_loop):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(17, 3)).astype(np.float32)
    data = {"x": x, "labels": (x @ rng.normal(size=(3, 2))).astype(np.float32)}
    run = run_loop(manifest=make_manifest("mse", width=2), data=data, val=None, **FAST)
    assert list(run.after) == ["loss", "mae", "rmse", "r2"]
    assert run.metric == "loss"
    assert run.after["r2"] > run.before["r2"]


def test_equal_metrics_are_decided_by_the_lower_loss(run_loop):
    one_class = {"x": np.abs(make_rows(6)["x"]), "labels": np.zeros(6, int)}
    run = run_loop(lr=0.1, epochs=3, data=one_class, val=one_class, metric="accuracy")
    rows = table(run)
    assert {row["val_accuracy"] for row in rows} == {"1.0"}
    assert run.best_epoch == int(np.argmin([float(row["val_loss"]) for row in rows])) > 0


def test_patience_stops_early_and_the_start_can_be_best(run_loop):
    # Labels of another rule than those trained on: training makes the validation worse.
    val = make_rows(9, seed=1)
    val["labels"] = (val["labels"] + 1) % 4
    run = run_loop(lr=0.5, epochs=9, patience=2, val=val, metric="loss")
    assert (run.end, run.epochs, run.best_epoch) == ("early", 2, 0)
    assert run.after == run.before


DIVERGING = {
    "step": ({}, ["nan", "epoch 2", "step 5", "batch 1", "after epoch 1"]),
    "accumulate": ({"accumulate": 2}, ["nan", "epoch 2", "step 3", "batch 2", "after epoch 1"]),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_loss_that_is_not_finite_stops_before_saving(run_loop, case):
    options, words = DIVERGING[case]
    session = FakeSession(make_manifest())
    batches_before = 4 if case == "step" else 5
    healthy = session.accumulate

    def accumulate(batch):
        result = healthy(batch)
        if len(session.batches) > batches_before:
            result.loss = math.nan
            session.weight[:] = math.nan
        return result

    session.accumulate = accumulate
    with pytest.raises(DivergedError) as error:
        run_loop(session=session, **FAST, **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    run = run_loop.root / "run"
    assert len((run / "results.csv").read_text().splitlines()) == 3, "a head, before training, epoch 1"
    assert np.isfinite(load_file(run / "weights" / "last.safetensors")["weight"]).all()
    assert json.loads((run / "checkpoints" / "last" / "loop.json").read_text())["epoch"] == 1


def test_an_evaluation_that_is_not_finite_stops_before_saving(run_loop):
    session = FakeSession(make_manifest())
    healthy = session.update

    def update(**options):
        healthy(**options)
        if session.step_count == 8:  # the last one of epoch 2: no training loss shows it
            session.weight[:] = math.inf

    session.update = update
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="evaluation after epoch 2 is nan"):
        run_loop(session=session, **FAST)
    assert np.isfinite(load_file(run_loop.root / "run" / "weights" / "last.safetensors")["weight"]).all()


@pytest.mark.parametrize(
    ("config", "lrs", "decays"),
    [
        ({"lr_factors": {"head": 0.5}}, {"default": 0.1, "head": 0.05, "free": 0.2}, (0.01, 0.3, 0.0)),
        ({"weight_decays": {"free": 0.4}}, {"default": 0.1, "head": 0.1, "free": 0.2}, (0.01, 0.3, 0.4)),
        ({"weight_decays": {"free": 0.4}, "weight_decay": 0.2}, None, (0.2, 0.3, 0.4)),
    ],
)
def test_groups_have_rates_of_their_own(config, lrs, decays):
    manifest = replace(
        make_manifest(),
        parameters=tuple(Parameter(g, (4, 3), "float32", g) for g in ("default", "head", "free")),
        parameter_groups=(ParameterGroup("head", 1.0, 0.3), ParameterGroup("free", 2.0, 0.0)),
    )
    plan = Plan.make(FakeSession(manifest), ArrayDataset(make_rows(17)), None, TrainConfig(lr=0.1, **config))
    rates = plan.rates(3)
    assert lrs is None or rates[0] == pytest.approx(lrs)
    assert tuple(rates[1].values()) == decays


def test_without_options_the_session_makes_the_rates():
    plan = Plan.make(
        FakeSession(make_manifest()), ArrayDataset(make_rows(17)), None, TrainConfig(lr=0.1, weight_decay=0.2)
    )
    assert plan.rates(3) == (0.1, 0.2)


REFUSED = {
    "metric of another loss": ({"metric": "mae"}, ConfigError, ["'mae'", "cross_entropy"]),
    "metric of several labels": ({"metric": "micro_f1"}, ConfigError, ["'micro_f1'"]),
    "unknown group": ({"lr_factors": {"defalt": 0.1}}, ConfigError, ["'defalt'", "Did you mean 'default'?"]),
    "unknown group of a decay": ({"weight_decays": {"head": 0.1}}, ConfigError, ["weight_decays", "'head'"]),
    "batch larger than data": ({"batch_size": 18}, DataError, ["17 rows", "18", "the training data"]),
    "accumulate beyond an epoch": ({"accumulate": 5}, ConfigError, ["accumulate 5", "4 batches", "batch_size 5"]),
    "warm-up below one update": ({"warmup": 0.01}, ConfigError, ["warmup 0.01", "epochs 10"]),
    "bad validation data": ({"val": {"x": make_rows(4)["x"]}}, DataError, ["the validation data", "'labels'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(run_loop, case):
    options, kind, words = REFUSED[case]
    with pytest.raises(kind) as error:
        run_loop(**options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (run_loop.root / "run").exists()
    assert run_loop.session.updates == []


def test_weights_are_refused_where_rows_cannot_be_weighted(run_loop):
    session = FakeSession(make_manifest(), supports_weights=False)
    with pytest.raises(DataError, match=r"'sample_weights'.*cannot weight rows"):
        run_loop(session=session, data={**make_rows(17), "sample_weights": np.ones(17)})


def test_a_batch_without_weight_is_named(run_loop):
    with pytest.raises(DataError, match="sample weight 0 in epoch 1, step 1, batch 1"):
        run_loop(data={**make_rows(17), "sample_weights": np.zeros(17)})


def test_an_undefined_metric_is_named(run_loop):
    one_class = {**make_rows(6), "labels": np.zeros(6, int)}
    with pytest.raises(DataError, match="'auc' is not defined on the validation data"):
        run_loop(manifest=make_manifest(width=2), data={**make_rows(8, width=2)}, val=one_class, metric="auc")


def test_a_run_never_writes_into_another(run_loop):
    run = run_loop(**FAST)
    before = (run.directory / "results.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"exists already.*--resume"):
        run_loop(**FAST, seed=3)
    assert (run.directory / "results.csv").read_bytes() == before


# ----- resume


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("update", [1, 2, 3, 4, 5])
def test_a_resumed_run_equals_one_that_was_never_stopped(run_loop, update, accumulate):
    options = {**FAST, "batch_size": 4, "accumulate": accumulate, "schedule": "onecycle", "seed": 5}
    whole = run_loop("whole", **options)
    stopped = run_loop("stopped", **options, progress=StopAfter(update))
    assert stopped.end == "interrupted"
    assert run_loop.session.step_count == update
    assert not (stopped.directory / "model.onnx").exists()
    resumed = run_loop("stopped", **options, resume=True)
    assert resumed.end == "complete"
    for name in ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_results_are_cut_back_to_the_checkpoint(run_loop):
    whole = run_loop("whole", **FAST)
    run = run_loop("stopped", **FAST, progress=StopAfter(6))
    results = run.directory / "results.csv"
    results.write_text(results.read_text() + results.read_text().splitlines()[-1].replace("1", "2", 1) + "\n")
    run_loop("stopped", **FAST, resume=True)
    assert results.read_bytes() == (whole.directory / "results.csv").read_bytes()


def test_a_complete_run_can_be_given_more_epochs(run_loop):
    whole = run_loop("whole", lr=0.1, epochs=5)
    run_loop("longer", lr=0.1, epochs=3)
    longer = run_loop("longer", lr=0.1, epochs=5, resume=True)
    assert (longer.directory / "results.csv").read_bytes() == (whole.directory / "results.csv").read_bytes()
    assert read_yaml(longer.directory / "config.yaml")["epochs"] == 5


RESUME_REFUSED = {
    "another rate": ({"lr": 0.2, "epochs": 3}, ConfigError, ["lr 0.1", "lr 0.2"]),
    "fewer epochs than made": ({"lr": 0.1, "epochs": 1}, ConfigError, ["epoch 2", "epochs 1"]),
    "other data": ({**FAST, "data": make_rows(17, seed=8)}, ArtifactError, ["'data'"]),
    "without validation": ({**FAST, "val": None}, ArtifactError, ["'val'", "now none"]),
    "another artifact": ({**FAST, "manifest": make_manifest(batch_size=6)}, ArtifactError, ["'artifact'"]),
}


@pytest.mark.parametrize("case", RESUME_REFUSED)
def test_a_resume_of_something_else_is_refused(run_loop, case):
    options, kind, words = RESUME_REFUSED[case]
    run = run_loop(**FAST, progress=StopAfter(6))
    before = {p: p.read_bytes() for p in run.directory.rglob("*") if p.is_file()}
    with pytest.raises(kind) as error:
        run_loop(**options, resume=True)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert before == {p: p.read_bytes() for p in run.directory.rglob("*") if p.is_file()}


def test_there_must_be_something_to_resume(run_loop):
    with pytest.raises(ArtifactError, match="no run to resume"):
        run_loop(**FAST, resume=True)
    run = run_loop("damaged", **FAST)
    (run.directory / "checkpoints" / "last" / "loop.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"loop\.json' is damaged"):
        run_loop("damaged", **FAST, resume=True)
    (run.directory / "checkpoints" / "last" / "loop.json").unlink()
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        run_loop("damaged", **FAST, resume=True)


def test_ctrl_c_is_ours_only_during_the_loop(run_loop):
    before = signal.getsignal(signal.SIGINT)
    run_loop(**FAST, progress=StopAfter(2))
    assert signal.getsignal(signal.SIGINT) is before
