"""A run that fails at any write: what was saved before is whole, nothing half-written stays, and it can go on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_fake_session import FakeSession, make_manifest

from onnxft.errors import ExitStatus, WriteError
from onnxft.files import append, new_directory, new_file, write_atomically

FAST = {"lr": 0.1, "epochs": 1}
KEPT = ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx", "metrics.json")


class FailAt:
    """Lets the given call of a function fail, and with `after` all that follow it: the disk stays full."""

    def __init__(self, monkeypatch, name, number, error, *, after=False):
        self.number, self.error, self.after, self.calls = number, error, after, 0
        self.real = getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.number or (self.after and self.calls > self.number):
            raise self.error
        return self.real(*args, **kwargs)


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_quietly(run_loop, name, **options):
    session = FakeSession(make_manifest())
    session.export_model = lambda path, values: write_atomically(path, values["weight"].tobytes())
    return run_loop(name, session=session, **FAST, **options)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    # They take most of the time here; their writer is that of every other file.
    monkeypatch.setattr("onnxft.training.records.can_plot", lambda: False)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_run_goes_on_from_a_failure_at_any_stage_of_any_write(run_loop, monkeypatch, name):
    whole = run_quietly(run_loop, "whole")
    for number in itertools.count(1):
        directory = run_loop.root / f"{name}-{number}"
        with monkeypatch.context() as patch:
            failing = FailAt(patch, name, number, full())
            try:
                run_quietly(run_loop, directory.name)
            except WriteError as err:
                assert "No space left on device" in str(err)
                assert str(err.path).startswith(str(directory))
                assert "--resume" in str(err) or not directory.exists()
        if failing.calls < number:
            break
        assert not [p for p in directory.rglob("*") if p.name.endswith((".part", ".previous"))]
        resumed = run_quietly(run_loop, directory.name, resume=directory.exists())
        for file in KEPT:
            assert (resumed.directory / file).read_bytes() == (whole.directory / file).read_bytes(), (number, file)
    assert number > 20


class KilledError(BaseException):
    """The process is gone: nothing is cleaned up behind it."""


def until(failing, clean):
    """`clean` as long as the process lives."""

    def run(*args, **kwargs):
        if failing.calls < failing.number:
            clean(*args, **kwargs)

    return run


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_run_goes_on_from_a_kill_at_any_stage_of_any_write(run_loop, monkeypatch, name):
    whole = run_quietly(run_loop, "whole")
    for number in itertools.count(1):
        directory = run_loop.root / f"{name}-{number}"
        with monkeypatch.context() as patch:
            failing = FailAt(patch, name, number, KilledError, after=True)
            patch.setattr(shutil, "rmtree", until(failing, shutil.rmtree))
            patch.setattr(Path, "unlink", until(failing, Path.unlink))
            with suppress(KilledError):
                run_quietly(run_loop, directory.name)
        if failing.calls < number:
            break
        resumed = run_quietly(run_loop, directory.name, resume=(directory / "config.yaml").exists())
        for file in KEPT:
            assert (resumed.directory / file).read_bytes() == (whole.directory / file).read_bytes(), (number, file)
        assert not [p for p in directory.rglob("*") if p.name.endswith(".part")]
    assert number > 20


# ----- every writer


WRITERS = {
    "file": lambda path: write_atomically(path, b"new"),
    "directory": lambda path: fill(path),
}


def fill(path):
    with new_directory(path) as beside:
        (beside / "sub").mkdir()
        write_atomically(beside / "sub" / "file", b"new")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, writer, name, before):
    path, write = tmp_path / "place", WRITERS[writer]
    if before:
        write(path)
    old = {p.relative_to(tmp_path): p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            failing = FailAt(patch, name, number, full())
            try:
                write(path)
            except WriteError as err:
                assert err.path == path
                assert err.exit_status == ExitStatus.WRITE == 11
                assert "cannot be written: No space left on device." in str(err)
            else:
                break
        if not (name == "fsync" and path.exists() and not before):  # the last one comes when all is in place
            assert old == {p.relative_to(tmp_path): p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    assert failing.calls < number
    assert number > 1


def test_a_write_in_the_middle_is_named(tmp_path):
    class Full:
        def write(self, data):
            raise full()

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(WriteError, match="What was there before is still there"), new_file(tmp_path / "file"):
        Full().write(b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_real_full_device_is_named():
    with pytest.raises(WriteError, match="'/dev/full' cannot be written: No space left on device"):
        append(Path("/dev/full"), b"line\n")


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    import resource

    path = tmp_path / "log"
    append(path, b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, before[1]))
    try:
        with pytest.raises(WriteError):
            append(path, b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"first\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_that_cannot_be_begun_leaves_nothing(run_loop, monkeypatch, exists):
    if exists:
        (run_loop.root / "run").mkdir()
    with monkeypatch.context() as patch:
        FailAt(patch, "fsync", 2, full(), after=True)
        with pytest.raises(WriteError, match=r"config\.yaml|env\.json"):
            run_quietly(run_loop, "run")
    assert (run_loop.root / "run").exists() == exists


def test_the_command_ends_with_its_exit_code(digits_source, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")
    from onnxft.cli.main import cli

    FailAt(monkeypatch, "fsync", 3, full(), after=True)
    result = CliRunner().invoke(cli, ["export", digits_source, "--out", str(tmp_path / "artifact")])
    assert isinstance(result.exception, WriteError)
    assert result.exception.path == tmp_path / "artifact"
    assert list(tmp_path.iterdir()) == []


def test_the_model_of_a_session_is_whole_or_absent(digits_artifact, tmp_path, monkeypatch):
    from onnxft.runtime.session import TrainSession

    with TrainSession(digits_artifact, threads=1) as session:
        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                FailAt(patch, name, 1, full())
                with pytest.raises(WriteError, match="Nothing was left there"):
                    session.export_model(tmp_path / "model.onnx")
            with monkeypatch.context() as patch:
                FailAt(patch, name, 1, full())
                with pytest.raises(WriteError, match=r"last' cannot be written"):
                    session.save_checkpoint(tmp_path / "last")
        assert list(tmp_path.iterdir()) == []
