"""The worker process of the engine: started, asked, and ended; what goes wrong there is an error here."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from onnxft.errors import ProviderError
from onnxft.ort_training_environment import how_to_make
from onnxft.runtime.isolate import shortened
from onnxft.runtime.ort_training import worker
from onnxft.runtime.ort_training.channel import Array, Channel

_LOG_BYTES = 4096
_SECONDS_TO_END = 5.0


class CallError(Exception):
    """onnxruntime-training refused a call; the message is its own."""


class WorkerProcess:
    """A process with onnxruntime-training. It ends with this one, however that ends: then its input ends."""

    def __init__(self, python: str) -> None:
        """Start it and import the package.

        Args:
            python: interpreter of the environment that has onnxruntime-training.

        Raises:
            ProviderError: it cannot be started, or the package cannot be imported.
        """
        self._python = python
        self._owed = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        memory = _shared_memory()
        try:
            self._process = subprocess.Popen(
                # Isolated (-I), so that packages on this environment's PYTHONPATH do not reach the other.
                [python, "-I", worker.__file__, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                pass_fds=(memory,),
            )
        except OSError as err:
            self._log.close()
            os.close(memory)
            raise ProviderError(f"'{python}' cannot be started ({err.strerror}). {how_to_make()}") from err
        assert self._process.stdin is not None and self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin, memory)  # type: ignore[arg-type]
        self._finalizer = weakref.finalize(self, _end, self._process, self._log, memory)
        try:
            started, _ = self.call("start")
        except CallError as err:
            self.close()
            raise ProviderError(
                f"onnxruntime-training cannot be imported by '{python}' ({err}). {how_to_make()}"
            ) from err
        self.version: str = started["version"]
        """Of onnxruntime-training."""
        self.devices: list[str] = started["devices"]
        """Those that its package can use: `cpu`, and `cuda` in the CUDA wheel."""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def call(
        self, name: str, arrays: Mapping[str, Array] | None = None, /, **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Values and arrays that a call of `onnxft.runtime.ort_training.worker.Worker` gives; the arrays are copies.

        Raises:
            CallError: onnxruntime-training refused it; the process goes on.
            ProviderError: the process is gone.
        """
        if not self._finalizer.alive:
            raise ProviderError("the worker process of onnxruntime-training has ended: open the session again.")
        try:
            while self._owed:  # an answer that an interrupted call did not wait for
                self._receive(name)
            self._owed += 1
            self._channel.send({"call": name, "arguments": arguments}, arrays or {})
        except BrokenPipeError:
            raise self._gone(name) from None
        except OSError as err:
            self._owed -= 1
            needed = sum(array.nbytes for array in (arrays or {}).values())
            raise ProviderError(
                f"there is no memory for the {needed:,} bytes that '{name}' hands to the worker process of "
                f"onnxruntime-training ({err.strerror}). Use a smaller batch."
            ) from err
        words, results = self._receive(name)
        if "error" in words:
            raise CallError(_said(words["error"]))
        return words["values"], {key: np.array(value) for key, value in results.items()}

    def close(self) -> None:
        """End the process; nothing where it has ended."""
        self._finalizer()

    def _receive(self, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
        answer = self._channel.receive()
        if answer is None:
            raise self._gone(name)
        self._owed -= 1
        return answer

    def _gone(self, name: str) -> ProviderError:
        """How the process ended, by itself or by the system."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        status = self._process.returncode
        said = _last_line(self._log)
        self.close()
        who = f"the worker process of onnxruntime-training ('{self._python}')"
        if status is not None and status < 0:
            number = -status
            known = number in set(signal.Signals)
            how = f"was ended by {signal.Signals(number).name if known else f'signal {number}'} in '{name}'"
            if number == signal.SIGKILL:
                return ProviderError(
                    f"{who} {how}; often the system does that when memory runs out. Use a smaller batch, train fewer "
                    "parameters, or export with the native generator."
                )
            return ProviderError(
                f"{who} {how}, a crash inside onnxruntime-training. Go on from the last checkpoint, or export with "
                "the native generator."
            )
        return ProviderError(f"{who} ended with status {status} in '{name}': {said or 'no message'}. {how_to_make()}")


def _said(error: str) -> str:
    """What onnxruntime-training said, on one line and without the place in its source."""
    first = (error.strip().splitlines() or [""])[0]
    return shortened(re.split(r"\[ONNXRuntimeError\] : \d+ : ", first)[-1]).rstrip(".")


def _shared_memory() -> int:
    """A file descriptor of memory that has no name, so that nothing is left of it when both processes are gone."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("onnxft-ort-training")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _last_line(log: BinaryIO) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    return shortened(next((line for line in reversed(lines) if line), ""))


def _end(process: subprocess.Popen[bytes], log: BinaryIO, memory: int) -> None:
    """End the process by ending its input; what does not end then is killed."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):  # what is still in the pipe of a dead process cannot be written
        process.stdin.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    log.close()
    os.close(memory)
