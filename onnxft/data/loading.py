"""Batches read ahead in the background, so that the session does not wait for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from onnxft.data.dataset import Batch, Dataset
from onnxft.data.sampler import Chosen, Sampler

_AHEAD = 2
"""Batches that each thread has ready or in work."""


class Loader(Protocol):
    """The batches of a run."""

    @property
    def source(self) -> str:
        """Where they come from, for messages."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows of an epoch; None: not known."""
        ...

    @property
    def waited(self) -> float:
        """Seconds for which whoever iterates has waited for batches so far."""
        ...

    def count(self, epoch: int) -> int:
        """Batches of an epoch, 0 for the first."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; to be closed where it is left early.

        Raises:
            DataError: a batch cannot be read; those before it came.
        """
        ...

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what the batches are made from."""
        ...


class RowLoader:
    """The rows that a sampler chooses from a data set, read by threads; batches do not depend on how many."""

    def __init__(
        self,
        data: Dataset,
        sampler: Sampler,
        sizes: Mapping[str, int],
        *,
        open_dimension: str | None = None,
        training: bool = True,
        workers: int = 1,
    ) -> None:
        """Hold what to read.

        Args:
            data: rows.
            sampler: which of them make a batch.
            sizes: those of the symbolic dimensions.
            open_dimension: the one whose size is the bucket of a batch.
            training: whether rows are augmented.
            workers: threads that read ahead; 0 reads when a batch is asked for.
        """
        self.data, self.sampler = data, sampler
        self._sizes, self._open_dimension, self._training, self._workers = sizes, open_dimension, training, workers
        self.source, self.rows, self.waited = data.source, len(data), 0.0

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.sampler.count(epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; no thread outlives the iteration."""
        chosen = iter(self.sampler.batches(epoch)[start:])
        if not self._workers:
            for one in chosen:
                yield self._timed(lambda one=one: self._read(one, epoch))  # type: ignore[misc]
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="onnxft-data")
        ahead: deque[Future[Batch]] = deque()
        try:
            for one in islice(chosen, _AHEAD * self._workers):
                ahead.append(pool.submit(self._read, one, epoch))
            while ahead:
                batch = self._timed(ahead.popleft().result)
                if (following := next(chosen, None)) is not None:
                    ahead.append(pool.submit(self._read, following, epoch))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def fingerprint(self) -> str:
        """Of the data."""
        return self.data.fingerprint()

    def _read(self, chosen: Chosen, epoch: int) -> Batch:
        bucket = {} if chosen.length is None else {self._open_dimension or "": chosen.length}
        return self.data.read(chosen.rows, sizes={**self._sizes, **bucket}, epoch=epoch if self._training else None)

    def _timed(self, get: Callable[[], Batch]) -> Batch:
        started = time.perf_counter()
        try:
            return get()
        finally:
            self.waited += time.perf_counter() - started
