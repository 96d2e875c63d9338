"""Batches read ahead in the background, so that the session does not wait for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import copy
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from onnxft.data.dataset import Batch, Dataset
from onnxft.data.sampler import Chosen, Sampler
from onnxft.manifest import SAMPLE_WEIGHTS
from onnxft.runtime.processes import Share

T = TypeVar("T")

AHEAD = 2
"""Batches that each thread has ready or in work."""


class Loader(Protocol):
    """The batches of a run."""

    waited: float
    """Seconds for which whoever iterates has waited for batches so far."""

    @property
    def source(self) -> str:
        """Where they come from, for messages."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows of an epoch; None: not known."""
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


def read_ahead(calls: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """The results of calls in their order, made by threads before they are asked for; with 0 workers, when they are.

    What a call raises comes at its place. No thread outlives the iteration.
    """
    following = iter(calls)
    if not workers:
        for call in following:
            yield call()
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="onnxft-data")
    ahead: deque[Future[T]] = deque()
    try:
        ahead.extend(pool.submit(call) for call in islice(following, AHEAD * workers))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(call) for call in islice(following, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def timed(batches: Iterator[T], loader: Loader) -> Iterator[T]:
    """The batches; how long each is waited for is added to `loader.waited`."""
    while True:
        started = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        finally:
            loader.waited += time.perf_counter() - started
        yield batch


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
        share: Share | None = None,
    ) -> None:
        """Hold what to read.

        Args:
            data: rows.
            sampler: which of them make a batch.
            sizes: those of the symbolic dimensions.
            open_dimension: the one whose size is the bucket of a batch.
            training: whether rows are augmented.
            workers: threads that read ahead; 0 reads when a batch is asked for.
            share: which rows of each batch are read, where several processes train; None: all.
        """
        self.data, self.sampler = data, sampler
        self._sizes, self._open_dimension, self._training, self._workers = sizes, open_dimension, training, workers
        self._share = share or Share(size=sampler.size)
        self.source, self.rows, self.waited = data.source, len(data), 0.0

    @property
    def workers(self) -> int:
        """Threads that read ahead."""
        return self._workers

    def over(self, data: Dataset) -> RowLoader:
        """The same batches of rows that are kept otherwise."""
        other = copy(self)
        other.data = data
        return other

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.sampler.count(epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; no thread outlives the iteration."""
        reads = (partial(self._read, chosen, epoch) for chosen in self.sampler.batches(epoch)[start:])
        with closing(read_ahead(reads, self._workers)) as batches:  # type: ignore[type-var]
            yield from timed(batches, self)

    def fingerprint(self) -> str:
        """Of the data."""
        return self.data.fingerprint()

    def _read(self, chosen: Chosen, epoch: int) -> Batch:
        bucket = {} if chosen.length is None else {self._open_dimension or "": chosen.length}
        rows = chosen.rows[self._share.place(len(chosen.rows))]
        batch = self.data.read(rows, sizes={**self._sizes, **bucket}, epoch=epoch if self._training else None)
        return weightless(batch) if self._share.is_empty(len(chosen.rows)) else batch


def weightless(batch: Batch) -> Batch:
    """The batch, none of whose rows counts: the share of a process that has no rows of a short batch."""
    return {**batch, SAMPLE_WEIGHTS: np.zeros(len(next(iter(batch.values()))), np.float32)}
