"""What the processes read together is what one reads: the same rows, padded, augmented and ordered alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from together import together

from onnxft.data.arrays import ArrayDataset
from onnxft.data.loading import RowLoader
from onnxft.data.sampler import Sampler
from onnxft.data.share import SharedBatches, rows_that_count
from onnxft.errors import DataError
from onnxft.runtime.processes import ALONE, Processes, Share

ROWS, SIZE = 37, 3
LABELS = np.arange(ROWS) % 5 % 3


class Told(ArrayDataset):
    """Says for what sizes and what epoch it was read, as padding and augmentation depend on them."""

    def read(self, index, *, sizes, epoch):
        number, seen = len(index), {"sequence": sizes["sequence"], "epoch": -1 if epoch is None else epoch}
        told = {name: np.full(number, value) for name, value in seen.items()}
        return {**super().read(index, sizes=sizes, epoch=epoch), **told}


def loader(processes, share=None, **options):
    data = Told({"id": np.arange(ROWS), "labels": LABELS})
    sampler = Sampler(ROWS, SIZE * processes, seed=1, **options)
    sizes = {"batch": SIZE, "sequence": 40}
    return RowLoader(data, sampler, sizes, open_dimension="sequence", share=share)


CASES = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "balanced": {"labels": LABELS},
    "buckets": {"lengths": np.arange(ROWS), "buckets": (8, 20, 40)},
    "balanced buckets": {"labels": LABELS, "lengths": np.arange(ROWS), "buckets": (8, 40)},
}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_shares_make_the_large_batch(case, start, processes):
    options = CASES[case]
    large = list(loader(processes, **options).batches(3, start))
    shares = [list(loader(processes, Share(r, processes, SIZE), **options).batches(3, start)) for r in range(processes)]
    assert {len(share) for share in shares} == {len(large)}
    assert loader(processes, Share(0, processes, SIZE), **options).count(3) == len(large) + start
    for number, expected in enumerate(large):
        parts = [share[number] for share in shares]
        filled = [part for part in parts if "sample_weights" not in part]
        for name, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in filled]), array)
        for part in parts:
            assert len(part["id"]) <= SIZE
            if "sample_weights" in part:  # none was left: the last row, which weighs nothing
                assert (part["id"].tolist(), part["sample_weights"].tolist()) == ([expected["id"][-1]], [0])
        assert sum(len(part["id"]) for part in filled) == len(expected["id"])


def test_some_shares_are_empty_and_some_short():
    """37 rows in batches of 12 leave 1 row for 4 processes of 3 rows each."""
    last = [list(loader(4, Share(r, 4, SIZE)).batches(0))[-1] for r in range(4)]
    assert ["sample_weights" in batch for batch in last] == [False, True, True, True]
    assert [len(batch["id"]) for batch in last] == [1, 1, 1, 1]


class Made:
    """Batches of code, of which rank 1 may make another one."""

    source, rows, waited = "'code'", None, 0.0

    def __init__(self, batches):
        self._batches = batches

    def count(self, epoch: int) -> int:
        return len(self._batches)

    def batches(self, epoch: int, start: int = 0) -> Iterator:
        yield from self._batches[start:]

    def fingerprint(self) -> str:
        return "f"


def made(number, seed=0, **more):
    rng = np.random.default_rng(seed)
    texts = np.array([f"t{i}" for i in range(number)], object)
    return {"x": rng.normal(size=(number, 2)), "t": texts, "labels": np.arange(number), **more}


def shares_of(batches_of):
    """[(batches, rows counted)] of two processes; `batches_of(rank)` is what the code makes there."""

    def work(processes: Processes):
        share = Share(processes.rank, processes.size, SIZE)
        loaded = SharedBatches(Made(batches_of(processes.rank)), share, processes)
        assert (loaded.source, loaded.rows, loaded.count(0), loaded.fingerprint()) == ("'code'", None, 3, "f")
        loaded.waited += 1.5
        assert loaded.waited == 1.5
        found = list(loaded.batches(0))
        return found, [rows_that_count(batch, processes) for batch in found]

    return together(2, work)


def test_each_process_takes_its_rows_of_what_code_makes():
    whole = [made(6), made(4, sample_weights=np.arange(4.0)), made(2)]
    (first, counted), (second, also) = shares_of(lambda rank: whole)
    assert counted == also == [6, 4, 2]
    for number in (0, 1):
        for name, array in whole[number].items():
            np.testing.assert_array_equal(np.concatenate([first[number][name], second[number][name]]), array)
    np.testing.assert_array_equal(first[2]["x"], whole[2]["x"])
    assert (second[2]["t"].tolist(), second[2]["sample_weights"].tolist()) == (["t1"], [0])


@pytest.mark.parametrize(
    "other",
    [made(6, seed=1), made(5), made(6, x=made(6)["x"].astype(np.float32)), made(6, t=np.array(["t"] * 6, object))],
    ids=["values", "rows", "type", "texts"],
)
def test_code_that_makes_other_batches_elsewhere_is_found_out(other):
    def batches_of(rank):
        return [made(6), other if rank else made(6), made(6)]

    for error in shares_of(batches_of):
        assert isinstance(error, DataError)
        assert "'code' makes other batches in another process" in str(error)


def test_a_batch_larger_than_all_shares_is_an_error():
    for error in shares_of(lambda rank: [made(6), made(7), made(6)]):
        assert "the batch has 7 rows; 2 processes of 3 rows each (batch_size) take at most 6" in str(error)


@pytest.mark.parametrize("broken", [{"labels": np.arange(5)}, {"labels": np.array(3)}, {"labels": np.zeros(0)}])
def test_a_batch_that_is_none_is_left_to_the_session(broken):
    (first, _), (second, _) = shares_of(lambda rank: [made(6), {**made(6), **broken}, made(6)])
    for found in (first, second):
        np.testing.assert_array_equal(found[1]["labels"], broken["labels"])


def test_rows_of_one_process_are_counted_whatever_they_weigh():
    assert rows_that_count({"x": np.zeros(4), "sample_weights": np.zeros(4)}, ALONE) == 4
