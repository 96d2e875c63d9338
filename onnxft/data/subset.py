"""Some rows of a data set as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from onnxft.arrays import Array
from onnxft.data.dataset import Batch, Dataset
from onnxft.data.sampler import split_rows
from onnxft.data.stream import Stream
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest


class Subset:
    """The rows `index` of `whole`; draws of augmentation stay those of the whole's rows."""

    def __init__(self, whole: Dataset, index: Array) -> None:
        """Hold a data set and row numbers (n,), at least one."""
        self._whole, self._index = whole, index
        self.source, self.classes = whole.source, whole.classes

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> Array | None:
        """Those of the rows."""
        return None if self._whole.labels is None else self._whole.labels[self._index]

    @property
    def lengths(self) -> Array | None:
        """Those of the rows."""
        return None if self._whole.lengths is None else self._whole.lengths[self._index]

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """Rows of the whole."""
        return self._whole.read(self._index[index], sizes=sizes, epoch=epoch)

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Check the whole, whose row numbers messages name."""
        self._whole.check(manifest, sizes)

    def fingerprint(self) -> str:
        """Of the whole, and of which rows are taken."""
        return hashlib.sha256(self._whole.fingerprint().encode() + self._index.tobytes()).hexdigest()


def split(data: Dataset | Stream, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """The rows to train on and those that are held back; see `split_rows`."""
    if isinstance(data, Stream):
        raise ConfigError(f"split needs rows, and {data.source} yields batches. Give --val instead.")
    kept, held = split_rows(len(data), fraction, seed, data.labels, data.source)
    return Subset(data, kept), Subset(data, held)
