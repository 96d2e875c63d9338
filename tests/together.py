"""Processes that are threads: everything but MPI."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxft.runtime.processes import Processes


class Thread(Processes):
    """One of several threads that meet where MPI processes would; a lost one is an error after a minute, no hang."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        super().__init__()
        self.rank, self.size, self._barrier, self._slots = rank, size, barrier, slots
        self.exchanges = 0

    def _gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = pickle.dumps(value)
        self._barrier.wait(60)
        gathered = [pickle.loads(slot) for slot in self._slots]
        self._barrier.wait(60)
        self.exchanges += 1
        return gathered

    def _first(self, value: Any) -> Any:
        return self._gather(value)[0]

    def _sum(self, buffer: np.ndarray, *, patient: bool = False) -> None:
        buffer[...] = sum(self._gather(buffer))


def together(size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What `work` gives in each of `size` processes: a value, or the error that it ended with."""
    barrier, slots, results = threading.Barrier(size), [None] * size, [None] * size

    def run(rank: int) -> None:
        processes = Thread(rank, size, barrier, slots)
        try:
            with processes.together():
                results[rank] = work(processes)
        except BaseException as err:
            results[rank] = err

    threads = [threading.Thread(target=run, args=(rank,), name=f"process {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
