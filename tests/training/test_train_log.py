"""What a run writes down while it goes: train.log, event files for TensorBoard; and how it begins after a kill."""

from __future__ import annotations

import builtins
import importlib.util
import json
import math
import re
import struct

import numpy as np
import pytest
from training_fake_session import FakeSession, StopAfter, make_manifest

from onnxft.errors import ArtifactError, ConfigError, DivergedError
from onnxft.runtime.loss_scale import LossScale

FAST = {"lr": 0.1, "epochs": 3}
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)


class KilledError(BaseException):
    """In the place of a kill: nothing of the run goes on."""


def lines(run_dir):
    """The lines of train.log without their times."""
    text = (run_dir / "train.log").read_text()
    assert text.endswith("\n")
    found = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", line) for line in text.splitlines()]
    assert all(found), text
    return [match[1] for match in found]


# ----- train.log


def test_the_log_tells_a_run_from_start_to_end(run_loop):
    run = run_loop(**FAST, schedule="cosine")
    said = lines(run.directory)
    for words in (
        "a new run", "artifact linear (native, sgd, cross_entropy)", "provider cpu -> cpu", "7 nodes on cpu",
        "onnxruntime fake", "batch size 5, trainable 12 / 20", "epochs 3, lr 0.1, schedule cosine",
        "before training  val_loss", "epoch 3/3  lr", f"complete after epoch 3, best epoch {run.best_epoch}: loss ",
    ):  # fmt: skip
        assert sum(words in line for line in said) == 1, words
    assert len(said) == 7 + 4 + 1


def test_the_log_goes_on_when_a_run_does(run_loop):
    run = run_loop(**FAST, progress=StopAfter(6))
    before = lines(run.directory)
    assert before[-1] == "interrupted in epoch 2 after batch 2: checkpoint"
    log = run.directory / "train.log"
    log.write_bytes(log.read_bytes() + b"2026-01-01 00:00:00 half a li")  # a disk that was full
    run_loop(**FAST, resume=True)
    said = lines(run.directory)
    assert said[: len(before)] == before
    assert said[len(before)].endswith("resumed after epoch 1, batch 2 of the next one, 6 updates")
    assert [line.split("  ")[0] for line in said if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_the_log_tells_of_updates_left_out(run_loop):
    session = FakeSession(make_manifest())
    session.loss_scale = LossScale(2.0**14, 3, 2)
    run = run_loop(session=session, **FAST)
    words = "2 updates left out, as gradients were not finite in float16; loss scale 16384"
    assert sum(line == words for line in lines(run.directory)) == FAST["epochs"]
    assert json.loads((run.directory / "metrics.json").read_text())["updates_left_out"] == 2


def test_the_log_tells_an_error(run_loop):
    session = FakeSession(make_manifest())
    healthy = session.accumulate

    def accumulate(batch):
        result = healthy(batch)
        result.loss = math.nan
        return result

    session.accumulate = accumulate
    with pytest.raises(DivergedError):
        run_loop(session=session, **FAST)
    assert lines(run_loop.root / "run")[-1].startswith("ended by DivergedError: the loss is nan in epoch 1, step 1")


def test_a_summary_is_only_of_a_run_that_ended(run_loop):
    run = run_loop(**FAST, progress=StopAfter(6))
    assert '"interrupted"' in (run.directory / "metrics.json").read_text()
    with pytest.raises(KilledError):
        run_loop(**FAST, resume=True, session=killed_at(7))
    assert not (run.directory / "metrics.json").exists()
    run_loop(**FAST, resume=True)
    assert '"complete"' in (run.directory / "metrics.json").read_text()


# ----- after a kill


def killed_at(step):
    session = FakeSession(make_manifest())
    healthy = session.update

    def update(**options):
        if session.step_count == step:
            raise KilledError
        healthy(**options)

    session.update = update
    return session


def test_a_run_killed_before_its_first_checkpoint_begins_once_more(run_loop):
    whole = run_loop("whole", **FAST)
    session = FakeSession(make_manifest())
    session.save_checkpoint = lambda path: (_ for _ in ()).throw(KilledError)
    with pytest.raises(KilledError):
        run_loop("killed", session=session, **FAST)
    directory = run_loop.root / "killed"
    assert (directory / "results.csv").exists()
    assert not (directory / "checkpoints" / "last").exists()
    resumed = run_loop("killed", resume=True, **FAST)
    for name in ("results.csv", "model.onnx", "metrics.json", "confusion_matrix.csv", "weights/last.safetensors"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name


def test_a_run_whose_checkpoint_is_lost_does_not_begin_once_more(run_loop):
    run = run_loop(**FAST)
    (run.directory / "checkpoints" / "last").rename(run.directory / "elsewhere")
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        run_loop(**FAST, resume=True)


def test_what_a_kill_left_half_written_goes_with_the_next_start(run_loop):
    run = run_loop(**FAST, progress=StopAfter(6))
    parts = [".results.csv.12.part", "weights/.best.safetensors.12.part", "checkpoints/.last.12.part/parameters"]
    for part in map(run.directory.joinpath, parts):
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"half")
    run_loop(**FAST, resume=True)
    assert not list(run.directory.rglob("*.part"))


def test_a_directory_with_nothing_but_an_unfinished_file_is_new(run_loop):
    directory = run_loop.root / "run"
    directory.mkdir()
    (directory / ".config.yaml.12.part").write_bytes(b"epo")
    run_loop(**FAST)
    assert not list(directory.rglob("*.part"))


# ----- TensorBoard


def scalars(run_dir):
    """[(step from which earlier files count no more, {(tag, step): value})] of each event file, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    files = []
    for path in sorted(run_dir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_ctime_ns):
        content, place, purge, found = path.read_bytes(), 0, None, {}
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                purge = event.step
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, "written twice"
                found[value.tag, event.step] = value.simple_value
        files.append((purge, found))
    return files


@needs_tensorboard
def test_event_files_have_every_epoch_and_every_update(run_loop):
    run = run_loop(**FAST, tensorboard=True)
    assert any(name.startswith("events.out.tfevents.") for name in run.files)
    ((_, found),) = scalars(run.directory)
    steps = range(1, 13)
    assert {step for tag, step in found if tag == "step/loss"} == set(steps)
    assert [found["step/lr", step] for step in steps] == pytest.approx([0.1] * 12)
    rows = np.genfromtxt(run.directory / "results.csv", delimiter=",", names=True)
    for name in rows.dtype.names[2:]:
        for row in rows:
            value = found.get((f"epoch/{name}", int(row["step"])), math.nan)
            assert value == pytest.approx(row[name], rel=1e-6, nan_ok=True), name


@needs_tensorboard
@pytest.mark.parametrize("kill", [2, 6, 9])
def test_after_a_resume_tensorboard_shows_the_run_once(run_loop, kill):
    whole = run_loop("whole", **FAST, tensorboard=True)
    with pytest.raises(KilledError):
        run_loop("killed", **FAST, tensorboard=True, session=killed_at(kill))
    run_loop("killed", **FAST, tensorboard=True, resume=True)
    shown = {}
    for purge, found in scalars(run_loop.root / "killed"):
        # What TensorBoard does: a new start at a step hides what earlier files have from there on.
        shown = {key: value for key, value in shown.items() if key[1] < purge}
        assert not set(shown) & set(found)
        shown |= found
    assert shown == scalars(whole.directory)[0][1]


def test_a_missing_package_is_an_error_before_the_run_begins(run_loop, monkeypatch):
    monkeypatch.setattr("onnxft.training.tensorboard.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboardX is not installed.*onnxft\[tensorboard\]"):
        run_loop(**FAST, tensorboard=True)
    assert not (run_loop.root / "run").exists()


def test_the_package_is_not_imported_unless_asked_for(run_loop, monkeypatch):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert not name.startswith("tensorboardX")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert not list(run_loop(**FAST).directory.glob("events*"))
