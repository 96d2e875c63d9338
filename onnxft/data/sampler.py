"""Which rows make which batch: a function of (seed, epoch) alone, so that any epoch can be made again at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxft.arrays import Array
from onnxft.errors import ConfigError, DataError

_SPLIT = 2**62
"""Stands where the number of an epoch stands, so that a split draws other numbers than any epoch."""


@dataclass(frozen=True)
class Chosen:
    """The rows of one batch."""

    rows: Array
    """(n,) int64"""
    length: int | None = None
    """The bucket: the size of the open dimension of text; None: that of the session."""


@dataclass(frozen=True)
class Sampler:
    """The batches of every epoch of a data set."""

    rows: int
    size: int
    """Rows of a batch; the last one, or the last of a bucket, may have fewer."""
    seed: int = 0
    shuffle: bool = True
    drop_short: bool = False
    """Whether batches of fewer rows are left out."""
    labels: Array | None = None
    """(rows,) classes that are drawn equally often; None: every row is drawn once an epoch."""
    ignored: int | None = None
    """The label whose rows are not drawn where classes are: it is no class, and the loss leaves it out."""
    lengths: Array | None = None
    """(rows,) lengths of texts, which `buckets` divide."""
    buckets: Sequence[int] = field(default=())
    """Lengths that a batch may have; a row goes to the smallest that holds it, a longer one is cut to the largest."""

    def count(self, epoch: int) -> int:
        """Batches of an epoch, 0 for the first."""
        if self.labels is not None and self.buckets:
            return len(self.batches(epoch))  # which rows are drawn decides how many fall into a bucket
        rows = np.bincount(self._bucket(np.arange(self.rows))) if self.buckets else np.array([self.rows])
        return int((rows // self.size if self.drop_short else -(-rows // self.size)).sum())

    def batches(self, epoch: int) -> list[Chosen]:
        """The batches of an epoch in order."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        if self.labels is not None:
            order = _balanced(self.labels, self.ignored, rng)
        else:
            order = rng.permutation(self.rows) if self.shuffle else np.arange(self.rows)
        if not self.buckets:
            return self._cut(order, None)
        bucket = self._bucket(order)
        made = [b for i, length in enumerate(sorted(self.buckets)) for b in self._cut(order[bucket == i], length)]
        return [made[i] for i in rng.permutation(len(made))] if self.shuffle else made

    def _bucket(self, rows: Array) -> Array:
        """(n,) which of the sorted buckets each row goes to."""
        places = np.searchsorted(np.sort(np.asarray(self.buckets)), np.asarray(self.lengths)[rows])
        return np.minimum(places, len(self.buckets) - 1)

    def _cut(self, order: Array, length: int | None) -> list[Chosen]:
        parts = [Chosen(order[start : start + self.size], length) for start in range(0, len(order), self.size)]
        return parts[:-1] if parts and self.drop_short and len(parts[-1].rows) < self.size else parts


def _balanced(labels: Array, ignored: int | None, rng: np.random.Generator) -> Array:
    """As many rows as there are labels, of each class equally many up to one: all of it in turn, then again."""
    classes = np.unique(labels if ignored is None else labels[labels != ignored])
    wanted = np.full(len(classes), len(labels) // len(classes))
    wanted[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    drawn = []
    for c, n in zip(classes, wanted.tolist(), strict=True):
        rows = np.flatnonzero(labels == c)
        drawn += [np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))] or [rows[:0]])[:n]]
    return rng.permutation(np.concatenate(drawn))


def class_labels(labels: Array | None, what: str, source: str) -> Array:
    """Labels that number one class for each row; ConfigError where `what` has none to go by."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ConfigError(f"{what} goes by one class for each row, which {source} does not have. Leave it out.")
    return labels


def split_rows(rows: int, fraction: float, seed: int, labels: Array | None, source: str) -> tuple[Array, Array]:
    """(rows to train on, rows held back), each in ascending order.

    round(fraction * rows) are held back, if so many can be. Where `labels` are classes, each is divided in that
    proportion (rounded so that the sum holds, the largest remainders up), but keeps a row to train on.

    Raises:
        DataError: no row would be held back.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, _SPLIT]))
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub"
    parts = [np.flatnonzero(labels == c) for c in np.unique(labels)] if classes else [np.arange(rows)]  # type: ignore[arg-type]
    wanted = min(round(rows * fraction), rows - len(parts))
    counts = _proportional(np.array([len(part) for part in parts]), wanted, rng)
    val = np.sort(np.concatenate([rng.permutation(p)[:n] for p, n in zip(parts, counts.tolist(), strict=True)]))
    if len(val) == 0:
        raise DataError(
            f"split {fraction} of {source} ({rows} rows{f', {len(parts)} classes' if classes else ''}) holds back no "
            "row. Raise split, or give --val."
        )
    return np.setdiff1d(np.arange(rows), val), val


def _proportional(sizes: Array, wanted: int, rng: np.random.Generator) -> Array:
    """(n,) numbers that sum to `wanted`, in proportion to `sizes` and each below its size; ties by lot."""
    share = sizes * wanted / sizes.sum()
    counts = np.minimum(np.floor(share).astype(np.int64), sizes - 1)
    while (missing := wanted - int(counts.sum())) > 0:
        lot = rng.permutation(len(sizes))
        nearest = lot[np.argsort(counts[lot] - share[lot], kind="stable")]
        counts[nearest[counts[nearest] < sizes[nearest] - 1][:missing]] += 1
    return np.asarray(counts)
