"""How the engine and its worker speak: a line of JSON through a pipe, arrays in memory that both have mapped.

Read by both interpreters: the standard library and numpy only. Through a pipe an array would be copied twice by the
system, in pieces of 64 KiB.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KEPT_BYTES = 64 * 2**20
"""What a larger message took of the shared memory is given back by the next one."""
_ALIGNMENT = 64


class Channel:
    """One end. The two take turns, so the memory holds the arrays of one message at a time."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, memory: int) -> None:
        """Speak through two pipes and the file descriptor of the shared memory."""
        self._reader, self._writer, self._memory = reader, writer, memory
        self._size = 0
        self._mapped: mmap.mmap | None = None

    def send(self, words: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Send what JSON can hold, and arrays of any layout.

        Raises:
            BrokenPipeError: the other end is gone.
            OSError: there is no memory for the arrays.
        """
        places, total = [], 0
        for name, array in arrays.items():
            places.append((name, array.dtype.str, array.shape, total))
            total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if total > self._size or self._size > KEPT_BYTES:
            self._resize(max(total, min(self._size, KEPT_BYTES)))
        for (_, dtype, shape, offset), array in zip(places, arrays.values(), strict=True):
            self._view(dtype, shape, offset)[...] = array
        line = json.dumps({"words": words, "arrays": places, "size": self._size})
        self._writer.write(line.encode() + b"\n")
        self._writer.flush()

    def receive(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The next message, its arrays as views that hold until this end sends; None where the other end is gone."""
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if message["size"] != self._size:
            self._map(message["size"])
        return message["words"], {name: self._view(*place) for name, *place in message["arrays"]}

    def _resize(self, size: int) -> None:
        # Memory that is not there must be an error here, not a signal at the first write to it.
        if size > self._size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._memory, 0, size)
        os.ftruncate(self._memory, size)
        self._map(size)

    def _map(self, size: int) -> None:
        self._mapped = mmap.mmap(self._memory, size)  # the old one goes with the last view of it
        self._size = size

    def _view(self, dtype: str, shape: tuple[int, ...], offset: int) -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.empty(shape, dtype)
        assert self._mapped is not None
        return np.frombuffer(self._mapped, dtype, count, offset).reshape(shape)
