from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from training_fake_session import FakeSession, make_manifest, make_rows

from onnxft.cli.train import train
from onnxft.cli.train_text import banner
from onnxft.errors import ArtifactError, ConfigError, DataError
from onnxft.manifest import Buffer
from onnxft.manifest_file import manifest_json
from onnxft.runtime.engine import Placement
from onnxft.runtime.processes import ALONE
from onnxft.training import loop, opening
from onnxft.training.budget import MemoryPlan
from onnxft.training.config import TrainConfig
from onnxft.yaml_file import read_yaml

RUNS = Path("runs")


class Bench:
    """A working directory with an artifact, data, and a fake session behind the command."""

    def __init__(self, root, monkeypatch):
        self.root, self.opened, self.interrupt_at, self.weighted = root, [], None, True
        (root / "linear").mkdir()
        (root / "linear" / "manifest.json").write_bytes(manifest_json(make_manifest()))
        np.savez(root / "train.npz", **make_rows(17))
        np.savez(root / "val.npz", **make_rows(9, seed=1))
        monkeypatch.setattr(opening, "TrainSession", self.open)
        monkeypatch.setattr(opening.Expected, "plan", lambda self, provider: MemoryPlan(why_not="there are no graphs"))
        monkeypatch.chdir(root)

    def open(self, artifact, provider, *, batch_size, seed, **options):
        self.opened.append({"provider": provider, "batch_size": batch_size, "seed": seed, **options})
        session = FakeSession(make_manifest(), batch_size=batch_size, seed=seed, supports_weights=self.weighted)
        healthy = session.update

        def update(**options):
            healthy(**options)
            if session.step_count == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

        session.update = update
        return session

    def __call__(self, *words):
        arguments = ["linear", "--data", "train.npz", "--val", "val.npz", *words]
        result = CliRunner().invoke(train, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def command(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_a_run_says_what_runs_what_changed_and_what_is_next(command):
    result = command("--epochs", "2", "--lr", "0.1", "--threads", "1", "--seed", "4")
    assert result.exit_code == 0
    for words in (
        "cpu -> cpu", "7 nodes on cpu", "12 / 20 (60.0%)", "threads    1", "17 rows of 'train.npz' in 4 batches of 5",
        "evaluated  9 rows of 'val.npz'",
        "before", "balanced_accuracy", "<- chose the best epoch", str(RUNS / "linear-1" / "model.onnx"),
        "Next: onnxft bench linear --provider cpu",
    ):  # fmt: skip
        assert words in result.stdout, words
    options = {"precision": "float32", "device": None, "provider_options": {}, "strict": False, "recompute": None}
    sizes = {"batch_size": None, "dimensions": {}}
    assert command.opened == [{"provider": "cpu", "threads": 1, "seed": 4, "processes": ALONE, **sizes, **options}]
    assert [line.split("  ")[0] for line in result.stderr.splitlines()] == ["before training", "epoch 1/2", "epoch 2/2"]
    assert "samples/s" in result.stderr.splitlines()[-1]


def test_what_is_asked_of_a_provider_reaches_the_session_and_is_saved(command):
    command("--epochs", "1", "--device", "1", "--strict", "--provider-option", "a=b=c", "--provider-option", "d=1")
    asked = {"device": 1, "provider_options": {"a": "b=c", "d": "1"}, "strict": True}
    assert asked.items() <= command.opened[0].items()
    assert asked.items() <= read_yaml(command.root / RUNS / "linear-1" / "config.yaml").items()


def test_dimensions_reach_the_session_and_are_saved(command):
    command("--epochs", "1", "--dimension", "sequence=32", "--dimension", "past + 1=3")
    assert command.opened[0]["dimensions"] == {"sequence": 32, "past + 1": 3}
    saved = RUNS / "linear-1" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["dimensions"] == {"sequence": 32, "past + 1": 3}
    command("--config", str(saved), "--dimension", "sequence=16", "--run", "other")
    command("--config", str(saved), "--run", "same")
    assert [o["dimensions"] for o in command.opened[1:]] == [{"sequence": 16}, {"sequence": 32, "past + 1": 3}]


@pytest.mark.parametrize("pair", ["sequence", "sequence=", "=3", "sequence=1.5", "sequence=-1"])
def test_a_dimension_is_a_name_and_a_size(command, pair):
    result = command("--dimension", pair)
    assert result.exit_code == 2
    assert "is not of the form NAME=SIZE" in result.stderr


def test_runs_are_numbered(command):
    for n in (1, 2):
        assert f"run        {RUNS / f'linear-{n}'}" in command("--epochs", "1").stdout


def test_flags_override_the_file_and_the_saved_configuration_repeats_the_run(command):
    (command.root / "mine.yaml").write_text("epochs: 5\nlr: 1e-1\nschedule: cosine\n")
    command("--config", "mine.yaml", "--epochs", "2")
    saved = command.root / "runs" / "linear-1" / "config.yaml"
    values = yaml.safe_load(saved.read_text())
    assert (values["epochs"], values["lr"], values["schedule"]) == (2, 0.1, "cosine")
    command("--config", str(saved))
    first, second = ((command.root / "runs" / f"linear-{n}" / "results.csv").read_bytes() for n in (1, 2))
    assert first == second


def test_ctrl_c_ends_with_a_checkpoint_and_the_command_to_resume(command):
    command("--epochs", "3", "--lr", "0.1", "--run", "whole")
    command.interrupt_at = 6
    stopped = command("--epochs", "3", "--lr", "0.1", "--run", "my run")
    assert stopped.exit_code == 130
    assert "Interrupted in epoch 2" in stopped.stdout
    assert "--data train.npz --val val.npz --resume --run 'my run'" in stopped.stdout
    command.interrupt_at = None
    resumed = command("--resume", "--run", "my run")
    assert resumed.exit_code == 0
    assert (command.root / "my run" / "model.onnx").read_bytes() == (command.root / "whole" / "model.onnx").read_bytes()


def test_resume_takes_the_newest_run(command):
    command("--epochs", "1")
    command("--epochs", "2")
    assert str(RUNS / "linear-2") in command("--resume").stdout


def test_rows_left_out_are_said(command):
    command.weighted = False
    assert "2 rows of each epoch are left out" in command("--epochs", "1").stdout


def test_weights_before_training_are_said_to_be_the_best(command):
    rows = make_rows(9, seed=1)
    np.savez(command.root / "val.npz", x=rows["x"], labels=(rows["labels"] + 1) % 4)
    output = command("--epochs", "2", "--lr", "0.5", "--metric", "loss", "--patience", "1").stdout
    assert "Stopped after epoch 1: no better loss since epoch 0" in output
    assert "the best weights are those before training" in output


def test_without_validation_data_the_summary_says_so(command):
    result = CliRunner().invoke(train, ["linear", "--data", "train.npz", "--epochs", "1"])
    assert "on the training data itself: give --val" in result.stdout


REFUSED = {
    "run in use": (["--run", "linear"], ConfigError, "'linear' exists already"),
    "nothing to resume": (["--resume"], ArtifactError, "no run"),
    "no such run": (["--resume", "--run", "nowhere"], ArtifactError, "no run to resume in 'nowhere'"),
    "typo": (["--schedule", "cosin"], ConfigError, "cosine"),
    "no such file": (["--val", "nothing.npz"], DataError, "nothing.npz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(command, case):
    words, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        command(*words)
    assert not (command.root / "runs").exists()


def test_resume_refuses_another_option(command):
    command("--epochs", "1", "--lr", "0.1")
    with pytest.raises(ConfigError, match=r"lr 0\.1.*lr 0\.2"):
        command("--resume", "--lr", "0.2")


def test_rows_left_out_for_trained_batch_norm_are_counted_with_the_reason(capsys):
    manifest = replace(make_manifest(), buffers=(Buffer("norm.mean", (3,), "float32", "mean", "norm", ("batch",)),))
    banner(
        loop.Start(
            manifest, Placement("cpu", "cpu"), TrainConfig(), RUNS / "linear-1", 5, "'x'", 17, 4, 2, None, None, ()
        )
    )
    assert (
        "2 rows of each epoch are left out: BatchNorm 'norm' trains on the statistics of the batch, which padding or "
        "weights would falsify, so a short batch cannot be padded"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--lr-factor", "--decay"])
def test_an_unknown_group_is_refused_before_anything_is_written(command, flag):
    with pytest.raises(ConfigError, match="names the parameter group 'head', which 'linear' has not"):
        command(flag, "head=0.1")
    assert not RUNS.exists()


def test_a_group_without_number_is_a_usage_error(command):
    result = command("--lr-factor", "head")
    assert result.exit_code == 2
    assert "'head' is not of the form KEY=NUMBER" in result.output
