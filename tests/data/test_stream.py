"""Batches from the user's code: what it is, how often it is called, and what happens when it fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from onnxft.data.stream import Stream
from onnxft.errors import DataError

CODE = """
import numpy as np
import torch

calls = []
made = [{"x": np.full((2, 3), i, np.float32), "labels": [i, i]} for i in range(4)]

def plain():
    calls.append(None)
    yield from made

def by_epoch(epoch):
    calls.append(epoch)
    for i in range(2 + epoch):
        yield {"x": torch.full((2, 3), 10.0 * epoch + i)}

class Loader(torch.utils.data.DataLoader):
    pass

loader = Loader([{"x": torch.ones(3) * i} for i in range(5)], batch_size=2)

def failing():
    yield made[0]
    raise RuntimeError("the camera is gone")

def refusing():
    raise OSError("no such host")

def lists():
    yield [1, 2]

def ragged():
    yield {"x": [[1, 2], [3]]}

def nothing():
    return 7

def threaded():
    import threading
    for batch in made:
        yield batch | {"thread": threading.current_thread().name}

class Sized:
    def __init__(self, said, given):
        self.said, self.given = said, given

    def __len__(self):
        return self.said

    def __iter__(self):
        return iter(made[: self.given])

fewer, more = Sized(4, 3), Sized(2, 3)
once = iter(made)
number, none = 3, []
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "rows.py").write_text(CODE, encoding="utf-8")
    return lambda name, ahead=True: Stream(f"{tmp_path / 'rows.py'}:{name}", ahead=ahead)


def firsts(batches):
    return [float(np.asarray(batch["x"]).flat[0]) for batch in batches]


@pytest.mark.parametrize("name", ["made", "plain"])
def test_a_list_or_a_function_yields_batches(code, name):
    stream = code(name)
    assert stream.count(0) == stream.count(3) == 4
    for epoch in (0, 1):
        assert firsts(stream.batches(epoch)) == [0, 1, 2, 3]
    assert firsts(stream.batches(0, 3)) == [3]
    assert all(isinstance(b["labels"], np.ndarray) for b in stream.batches(0))
    assert stream.rows is None


@pytest.mark.parametrize("ahead", [True, False])
def test_one_thread_makes_batches_ahead_and_ends_with_them(code, ahead):
    stream = code("threaded", ahead)
    batches = stream.batches(0)
    assert firsts([next(batches)]) == [0]
    names = {t.name.split("_")[0] for t in threading.enumerate()}
    assert ("onnxft-data" in names) == ahead
    batches.close()
    assert "onnxft-data" not in {t.name.split("_")[0] for t in threading.enumerate()}
    made = {str(batch["thread"]) for batch in stream.batches(0)}
    assert len(made) == 1
    assert made.pop().startswith("onnxft-data") == ahead
    assert stream.waited > 0


def test_a_function_may_take_the_epoch(code):
    stream = code("by_epoch")
    assert [stream.count(e) for e in (0, 1, 2)] == [2, 3, 4]
    assert firsts(stream.batches(1, 1)) == [11, 12]


def test_a_data_loader_of_torch_is_counted_by_its_length(code):
    stream = code("loader")
    assert stream.count(0) == 3
    assert [b["x"].shape for b in stream.batches(0)] == [(2, 3), (2, 3), (1, 3)]
    assert torch.equal(torch.from_numpy(next(iter(stream.batches(0)))["x"]), torch.tensor([[0.0] * 3, [1.0] * 3]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("failing", "rows.py:failing' raised RuntimeError at batch 2: the camera is gone"),
        ("refusing", "rows.py:refusing' raised OSError( at batch 1)?: no such host"),
        ("lists", "rows.py:lists' yields list as batch 1: a batch is {name: array}"),
        ("ragged", "rows.py:ragged' yields in batch 1 what is no array"),
        ("nothing", "rows.py:nothing' returns int, which yields no batches"),
    ],
)
def test_what_goes_wrong_says_where(code, name, words):
    stream = code(name)
    with pytest.raises(DataError, match=words):
        list(stream.batches(0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number", "rows.py:number' is int: a function or an iterable yields batches"),
        ("once", "rows.py:once' is list_iterator, which is used up after one pass. Name the function"),
        ("plan", "rows.py' has no function or iterable 'plan'. Did you mean 'plain'"),
    ],
)
def test_what_yields_no_batches_is_refused_at_once(code, name, words):
    with pytest.raises(DataError, match=words):
        code(name)


def test_code_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"the file '.*none.py' does not exist"):
        Stream(f"{tmp_path / 'none.py'}:rows")
    with pytest.raises(DataError, match="module 'no_such_module' cannot be imported"):
        Stream("no_such_module:rows")


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("fewer", 3, "rows.py:fewer' ended after batch 3 of the 4 that it had when counted"),
        ("more", 2, "rows.py:more' yields more than the 2 batches that it had when counted"),
    ],
)
def test_the_number_of_batches_is_kept(code, name, made, words):
    stream = code(name)
    stream.count(0)
    seen = []
    with pytest.raises(DataError, match=words):
        for batch in stream.batches(0):
            seen.append(batch)
    assert len(seen) == made


def test_there_must_be_a_batch(code):
    with pytest.raises(DataError, match=r"rows\.py:none' yields no batch"):
        code("none").count(0)


def test_the_fingerprint_is_of_the_name_and_the_number_of_batches(code, tmp_path):
    names = ["made", "plain", "fewer", "more"]
    prints = {name: code(name).fingerprint() for name in names}
    assert len(set(prints.values())) == 4
    (tmp_path / "rows.py").write_text(CODE.replace("range(4)", "range(5)"), encoding="utf-8")
    assert {name: code(name).fingerprint() == prints[name] for name in names} == {
        "made": False, "plain": False, "fewer": True, "more": True,
    }  # fmt: skip
