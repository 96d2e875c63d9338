"""Reading ahead changes neither batches nor their order, and leaves no thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from onnxft.arrays import Array
from onnxft.data.arrays import ArrayDataset
from onnxft.data.dataset import Batch
from onnxft.data.loading import RowLoader
from onnxft.data.sampler import Sampler
from onnxft.data.subset import Subset, split
from onnxft.errors import DataError

BROKEN: set[int] = set()


class Counted(ArrayDataset):
    """Reads unevenly fast, and not rows that are in `BROKEN`."""

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        time.sleep(0.001 * (int(index[0]) % 3))  # later batches are often ready first
        if BROKEN & set(index.tolist()):
            raise DataError(f"row {sorted(BROKEN)[0]} cannot be read.")
        return {**super().read(index, sizes=sizes, epoch=epoch), "sizes": np.array(sorted(sizes.items()))}


def loader(workers: int, **options) -> RowLoader:
    data = Counted({"id": np.arange(23), "labels": np.arange(23) % 3})
    sampler = Sampler(23, 4, seed=1, **options)
    return RowLoader(data, sampler, {"batch": 4, "sequence": 9}, open_dimension="sequence", workers=workers)


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def data_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("onnxft-data")]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 4, 6])
def test_batches_do_not_depend_on_threads_and_begin_anywhere(workers, start):
    expected = [chosen.rows.tolist() for chosen in Sampler(23, 4, seed=1).batches(2)]
    reading = loader(workers)
    assert ids(reading.batches(2, start)) == expected[start:]
    assert reading.count(2) == 6
    assert reading.waited > 0
    assert not data_threads()


def test_the_bucket_is_the_size_of_the_open_dimension():
    reading = loader(1, lengths=np.arange(23), buckets=(8, 30))
    seen = {tuple(batch["sizes"][1]) for batch in reading.batches(0)}
    assert seen == {("sequence", "8"), ("sequence", "30")}


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_comes_at_its_batch_and_ends_the_threads(workers, monkeypatch):
    reading = loader(workers)
    expected = ids(reading.batches(0))
    monkeypatch.setitem(globals(), "BROKEN", {expected[3][2]})
    before = []
    with pytest.raises(DataError, match=r"row \d+ cannot be read"):
        for batch in reading.batches(0):
            before.append(batch["id"].tolist())
    assert before == expected[:3]
    assert not data_threads()


@pytest.mark.parametrize("workers", [1, 4])
def test_leaving_early_ends_the_threads(workers):
    batches = loader(workers).batches(0)
    next(batches)
    assert data_threads()
    batches.close()
    assert not data_threads()


def test_a_subset_is_its_rows_of_the_whole():
    whole = Counted({"id": np.arange(23), "labels": np.arange(23) % 3}, "'whole'")
    part = Subset(whole, np.array([4, 7, 20]))
    assert len(part) == 3
    assert part.read(np.array([2, 0]), sizes={}, epoch=None)["id"].tolist() == [20, 4]
    assert part.labels.tolist() == [1, 1, 2]
    assert (part.lengths, part.classes, part.source) == (None, (), "'whole'")
    assert part.fingerprint() != Subset(whole, np.array([4, 7, 21])).fingerprint()
    train, held = split(whole, 0.2, 0)
    assert (len(train), len(held)) == (18, 5)
