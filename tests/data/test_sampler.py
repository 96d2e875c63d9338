"""Batches are a function of (seed, epoch): every row once, or every class equally often, texts by their lengths."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from onnxft.data.sampler import Sampler, class_labels, split_rows
from onnxft.errors import ConfigError, DataError

LABELS = np.array([0] * 11 + [1] * 3 + [2] * 5)
LENGTHS = np.array([3, 9, 4, 17, 40, 8, 5, 16, 1, 2, 30, 12, 7])


def rows(sampler: Sampler, epoch: int) -> list[list[int]]:
    return [chosen.rows.tolist() for chosen in sampler.batches(epoch)]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [4, 4, 3]),
        ({"drop_short": True}, [4, 4]),
        ({"rows": 8, "drop_short": True}, [4, 4]),
        ({"rows": 3}, [3]),
        ({"rows": 3, "drop_short": True}, []),
    ],
)
def test_every_row_comes_once(options, sizes):
    sampler = Sampler(**{"rows": 11, "size": 4, **options})
    found = rows(sampler, 0)
    assert [len(b) for b in found] == sizes
    flat = list(chain(*found))
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(sampler.rows))
    assert sampler.count(0) == len(sizes)


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = [str(rows(Sampler(11, 4, seed=s), e)) for s in (0, 1) for e in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert orders == [str(rows(Sampler(11, 4, seed=s), e)) for s in (0, 1) for e in (0, 1, 2)]


def test_without_shuffling_rows_stay_in_order():
    assert rows(Sampler(6, 4, shuffle=False), 5) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("epoch", range(3))
def test_classes_are_drawn_equally_often(epoch):
    flat = np.array(list(chain(*rows(Sampler(19, 4, labels=LABELS), epoch))))
    assert len(flat) == 19
    counts = np.bincount(LABELS[flat])
    assert sorted(counts.tolist()) == [6, 6, 7]
    # A row of a large class comes once at most, each of a small one before any comes again.
    repeats = np.bincount(flat, minlength=19)
    assert repeats[LABELS == 0].max() == 1
    assert np.ptp(repeats[LABELS == 1]) <= 1
    assert repeats[LABELS == 1].min() >= 2


def test_an_ignored_label_is_no_class_to_balance():
    labels = np.where(np.arange(19) % 4 == 0, -100, LABELS)
    drawn = np.concatenate([b.rows for b in Sampler(19, 4, labels=labels, ignored=-100).batches(0)])
    counts = dict(zip(*np.unique(labels[drawn], return_counts=True), strict=True))
    assert len(drawn) == 19
    assert set(counts) == {0, 1, 2}
    assert set(counts.values()) == {6, 7}


def test_a_batch_has_texts_of_one_bucket_and_longer_ones_are_in_the_largest():
    sampler = Sampler(13, 3, lengths=LENGTHS, buckets=(16, 4, 8))
    for epoch in (0, 1):
        batches = sampler.batches(epoch)
        assert sorted(chain(*(b.rows.tolist() for b in batches))) == list(range(13))
        for b in batches:
            fits = [min((s for s in (4, 8, 16) if s >= n), default=16) for n in LENGTHS[b.rows]]
            assert set(fits) == {b.length}
        assert sampler.count(epoch) == len(batches) == 2 + 1 + 2
    lengths = [[b.length for b in sampler.batches(e)] for e in range(4)]
    assert len({str(one) for one in lengths}) > 1, "the buckets do not come in one order"


def test_buckets_of_balanced_classes_are_counted_epoch_by_epoch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, 19)
    sampler = Sampler(19, 2, labels=LABELS, lengths=lengths, buckets=(4, 8, 16))
    counts = [sampler.count(e) for e in range(20)]
    assert counts == [len(sampler.batches(e)) for e in range(20)]
    assert len(set(counts)) > 1


@pytest.mark.parametrize(
    ("fraction", "labels", "held"),
    [
        (0.25, LABELS, {0: 3, 1: 1, 2: 1}),
        (0.9, LABELS, {0: 10, 1: 2, 2: 4}),
        (0.5, np.array([0, 0, 1]), {0: 1}),
        (0.5, np.repeat([0, 1, 2], [2, 1, 9]), {0: 1, 2: 5}),
    ],
)
def test_a_split_divides_every_class_and_leaves_it_a_row(fraction, labels, held):
    train, val = split_rows(len(labels), fraction, 3, labels, "'x'")
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert dict(zip(*np.unique(labels[val], return_counts=True), strict=True)) == held
    assert set(labels[train]) == set(labels)
    again = split_rows(len(labels), fraction, 3, labels, "'x'")
    assert all((a == b).all() for a, b in zip((train, val), again, strict=True))


@pytest.mark.parametrize(("fraction", "held"), [(0.1, 40), (0.15, 60), (0.3, 120)])
def test_a_split_of_many_small_classes_holds_back_as_much_as_asked(fraction, held):
    """Rounded class by class, these would be 0, 100 and 100 rows."""
    labels = np.arange(400) % 100
    _, val = split_rows(400, fraction, 0, labels, "'x'")
    counts = np.bincount(labels[val], minlength=100)
    assert len(val) == held
    assert set(counts) <= {int(4 * fraction), int(4 * fraction) + 1}
    others = split_rows(400, fraction, 1, labels, "'x'")[1]
    assert (np.bincount(labels[others], minlength=100) != counts).any(), "which classes are rounded up is by lot"


@pytest.mark.parametrize("drop_short", [False, True])
@pytest.mark.parametrize("buckets", [(), (16, 4, 8)])
@pytest.mark.parametrize("size", [1, 3, 4, 13])
def test_the_count_is_that_of_the_batches(size, buckets, drop_short):
    sampler = Sampler(13, size, lengths=LENGTHS, buckets=buckets, drop_short=drop_short)
    assert [sampler.count(e) for e in (0, 3)] == [len(sampler.batches(e)) for e in (0, 3)]


def test_a_split_without_classes_is_one_of_rows():
    train, val = split_rows(10, 0.3, 0, np.linspace(0, 1, 10), "'x'")
    assert (len(train), len(val)) == (7, 3)
    others = {str(split_rows(10, 0.3, seed, None, "'x'")[1]) for seed in range(5)}
    assert len(others) > 1


def test_a_split_that_holds_back_nothing_is_refused():
    with pytest.raises(DataError, match=r"split 0.01 of 'cells' \(19 rows, 3 classes\) holds back no row. Raise split"):
        split_rows(19, 0.01, 0, LABELS, "'cells'")


@pytest.mark.parametrize("labels", [None, np.zeros(3), np.zeros((3, 2), np.int64)])
def test_balance_needs_classes(labels):
    with pytest.raises(ConfigError, match="balance goes by one class for each row, which 'x' does not have"):
        class_labels(labels, "balance", "'x'")
