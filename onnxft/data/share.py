"""What one of several processes reads of the batches of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from onnxft.data.dataset import Batch
from onnxft.data.loading import Loader, weightless
from onnxft.errors import DataError
from onnxft.manifest import SAMPLE_WEIGHTS
from onnxft.runtime.processes import Processes, Share


def rows_that_count(batch: Batch, processes: Processes) -> int:
    """Rows of the large batch of which `batch` is the share of this process; called by all."""
    weights = batch.get(SAMPLE_WEIGHTS)
    mine = _rows(batch) if processes.size == 1 or weights is None or np.any(weights) else 0
    return processes.total(mine)


class SharedBatches:
    """Large batches that code makes, of which each process takes its rows.

    The code runs in each process, and must make the same batches in all of them, which is verified.
    """

    def __init__(self, whole: Loader, share: Share, processes: Processes) -> None:
        """Hold the loader of large batches."""
        self._whole, self._share, self._processes = whole, share, processes
        self.source, self.rows, self.count, self.fingerprint = whole.source, whole.rows, whole.count, whole.fingerprint

    @property
    def waited(self) -> float:
        """Seconds for which whoever iterates has waited for batches so far."""
        return self._whole.waited

    @waited.setter
    def waited(self, seconds: float) -> None:
        self._whole.waited = seconds

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The shares of the batches of an epoch; DataError where another process has made other batches."""
        with closing(self._whole.batches(epoch, start)) as batches:  # type: ignore[type-var]
            for batch in batches:
                if not self._processes.same(_digest(batch)):
                    raise DataError(
                        f"{self.source} makes other batches in another process. Let it draw by a fixed seed: each of "
                        "the processes runs it, and takes its rows of each batch."
                    )
                yield self._of(batch)

    def _of(self, batch: Batch) -> Batch:
        lengths = {name: len(array) if array.ndim else 0 for name, array in batch.items()}
        rows = max(lengths.values(), default=0)
        if min(lengths.values(), default=0) < rows or rows == 0:
            return batch  # the session says what is wrong with it
        if rows > self._share.whole:
            raise DataError(
                f"the batch has {rows} rows; {self._share.processes} processes of {self._share.size} rows each "
                f"(batch_size) take at most {self._share.whole}."
            )
        mine = {name: array[self._share.place(rows)] for name, array in batch.items()}
        return weightless(mine) if self._share.is_empty(rows) else mine


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _digest(batch: Batch) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(batch.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()
