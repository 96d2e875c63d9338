"""The worker process of the ort-training engine: how it speaks, how it ends, and what is said when it dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxft.errors import ProviderError
from onnxft.runtime.ort_training import channel
from onnxft.runtime.ort_training.channel import Channel
from onnxft.runtime.ort_training.engine import OrtTrainingEngine
from onnxft.runtime.ort_training.process import CallError, WorkerProcess, _shared_memory

SECONDS = 20.0
"""Within which a process that is to end has ended."""


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a channel, in one process."""
    memory, pipes = _shared_memory(), [os.pipe(), os.pipe()]
    files = [os.fdopen(fd, mode) for pair in pipes for fd, mode in zip(pair, ("rb", "wb"), strict=True)]
    yield Channel(files[0], files[3], memory), Channel(files[2], files[1], memory)
    for file in files:
        file.close()
    os.close(memory)


@pytest.fixture
def worker(ort_python: str) -> Iterator[WorkerProcess]:
    process = WorkerProcess(ort_python)
    yield process
    process.close()


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():  # its new parent may not have asked for it yet
            return True
        time.sleep(0.05)
    return False


# ----- messages -----

ARRAYS = {
    "none": {},
    "a number": {"x": np.array(2.5, np.float32)},
    "no rows": {"x": np.zeros((0, 3), np.float32)},
    "of several types": {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.array([True, False, True]),
        "c": np.arange(5, dtype=np.float16),
        "d/e": np.arange(3, dtype=np.uint8),
    },
    "transposed": {"x": np.arange(12, dtype=np.float32).reshape(3, 4).T},
    "every second": {"x": np.arange(10, dtype=np.int32)[::-2]},
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_arrive_as_they_were(case: str, ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    for words in ({"n": 1, "x": float("inf"), "text": "ein \n Wort é"}, {"n": None}):
        here.send(words, ARRAYS[case])
        received = there.receive()
        assert received is not None
        assert received[0] == words
        assert list(received[1]) == list(ARRAYS[case])
        for name, array in ARRAYS[case].items():
            assert received[1][name].dtype == array.dtype
            np.testing.assert_array_equal(received[1][name], array)


def test_memory_grows_for_a_message_and_is_given_back(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "KEPT_BYTES", 1000)
    here, there = ends
    sizes = []
    for sender, receiver, count in [(here, there, 10), (here, there, 900), (there, here, 5), (here, there, 3)]:
        array = np.arange(count, dtype=np.float64)
        sender.send({}, {"x": array})
        received = receiver.receive()
        assert received is not None
        np.testing.assert_array_equal(received[1]["x"], array)
        sizes.append(os.fstat(here._memory).st_size)
    assert sizes == [128, 7232, 1000, 1000]


def test_the_end_of_the_other_is_no_message(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here._writer.write(b'{"words": {}')  # it died within a line
    here._writer.close()
    assert there.receive() is None
    there._reader.close()
    there._writer.close()


# ----- calls -----


def test_a_refused_call_leaves_the_process_running(worker: WorkerProcess) -> None:
    for call in ("train", "no_such_call"):
        with pytest.raises(CallError):
            worker.call(call, {"x": np.zeros(3)})
    values, _ = worker.call("peak_bytes")
    assert 2**20 < values["bytes"] < 2**32
    assert (worker.version, worker.devices) == ("1.19.2", ["cpu"])


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(worker: WorkerProcess) -> None:
    # As after Ctrl-C in the middle of a call.
    worker._channel.send({"call": "no_such_call", "arguments": {}}, {})
    worker._owed += 1
    assert "bytes" in worker.call("peak_bytes")[0]


def test_arrays_without_memory_are_an_error_and_the_process_goes_on(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*place: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ProviderError, match=r"no memory for the 4,000 bytes that 'train' hands to .*smaller batch"):
            worker.call("train", {"x": np.zeros(1000, np.float32)}, outputs=[])
    assert "bytes" in worker.call("peak_bytes", {"x": np.zeros(1000, np.float32)})[0]


@pytest.mark.parametrize("form", ["weighted"], indirect=True)
def test_results_are_copies(make_engine: Callable[..., OrtTrainingEngine]) -> None:
    engine = make_engine("mlp_sgd")
    first = engine.parameters()
    kept = {name: value.copy() for name, value in first.items()}
    engine.set_parameters({name: value + 1 for name, value in first.items()})
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        np.testing.assert_array_equal(engine.parameters()[name], kept[name] + 1)


# ----- how it ends -----


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"ended by SIGKILL in 'peak_bytes'; often .* memory runs out. Use a smaller batch"),
        (signal.SIGSEGV, r"ended by SIGSEGV in 'peak_bytes', a crash inside onnxruntime-training. Go on from the last"),
    ],
)
def test_a_death_is_an_error_that_names_it(number: int, words: str, worker: WorkerProcess) -> None:
    os.kill(worker.pid, number)
    with pytest.raises(ProviderError, match=words):
        worker.call("peak_bytes")
    with pytest.raises(ProviderError, match="has ended: open the session again"):
        worker.call("peak_bytes")
    worker.close()


def test_a_death_within_a_call_is_seen_at_once(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGSTOP)  # so that the call is not answered

    def kill() -> None:
        time.sleep(0.2)
        os.kill(worker.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ProviderError, match="ended by SIGKILL in 'peak_bytes'"):
        worker.call("peak_bytes")
    thread.join()


def test_ctrl_c_does_not_end_it(worker: WorkerProcess) -> None:
    # A terminal sends it to both processes; the loop finishes its step and saves.
    os.kill(worker.pid, signal.SIGINT)
    assert "bytes" in worker.call("peak_bytes")[0]


def test_close_ends_it(worker: WorkerProcess) -> None:
    pid = worker.pid
    worker.close()
    worker.close()
    assert has_ended(pid)


def test_it_ends_with_a_session_that_nobody_closed(ort_python: str) -> None:
    process = WorkerProcess(ort_python)
    pid = process.pid
    del process
    assert has_ended(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(number: int, ort_python: str) -> None:
    code = (
        "import sys, time\n"
        "from onnxft.runtime.ort_training.process import WorkerProcess\n"
        f"worker = WorkerProcess({ort_python!r})\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    assert has_ended(pid)


# ----- interpreters that are none -----


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "cannot be started .No such file or directory.*onnxft setup ort-training"),
        ("exit 3", "ended with status 3 in 'start': no message.*onnxft setup ort-training"),
        ("echo one >&2; echo the reason >&2; exit 1", "ended with status 1 in 'start': the reason."),
        ("kill -SEGV $$", "ended by SIGSEGV in 'start'"),
        (f'exec {sys.executable} -S "$@"', "ended with status 1 in 'start': .*numpy"),
    ],
)
def test_an_interpreter_that_cannot_do_it(script: str | None, words: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    with pytest.raises(ProviderError, match=words) as caught:
        WorkerProcess(str(python))
    assert "\n" not in str(caught.value)


def test_an_environment_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot be imported by .*ModuleNotFoundError.*onnxft setup ort-training"):
        WorkerProcess(sys.executable)
