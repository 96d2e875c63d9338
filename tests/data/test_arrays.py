from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from training_fake_session import make_manifest, make_rows

from onnxft.data.arrays import ArrayDataset
from onnxft.errors import DataError


def changed(**arrays):
    """Seven good rows with some arrays replaced; None takes one away."""
    rows = {**make_rows(7), **arrays}
    return {name: array for name, array in rows.items() if array is not None}


def at(array, index, value):
    array = array.copy()
    array[index] = value
    return array


GOOD = make_rows(7)
BAD = {
    "input missing": (changed(x=None), ["'x'", "'labels'"]),
    "labels missing": (changed(labels=None), ["'labels'"]),
    "unknown array": (changed(sample_weight=np.ones(7)), ["'sample_weight'", "sample_weights"]),
    "bytes as pixels": (changed(x=np.zeros((7, 3), np.uint8)), ["'x'", "uint8", "float32", "convert"]),
    "floats as labels": (changed(labels=np.zeros(7)), ["'labels'", "float64", "int64"]),
    "float64 beyond float32": (changed(x=at(np.zeros((7, 3)), (4, 2), 1e300)), ["'x'", "[4, 2]", "1e+300"]),
    "uint64 that int64 cannot hold": (
        changed(labels=at(np.zeros(7, np.uint64), 5, 2**64 - 1)), ["'labels'"]),
    "wrong width": (changed(x=np.zeros((7, 4), np.float32)), ["'x'", "[7, 4]", "3"]),
    "wrong rank": (changed(x=np.zeros((7, 3, 1), np.float32)), ["'x'", "[7, 3, 1]"]),
    "label too great": (changed(labels=at(GOOD["labels"], 6, 4)), ["'labels'", "4", "row 6", "0 to 3"]),
    "label below zero": (changed(labels=at(GOOD["labels"], 2, -1)), ["'labels'", "-1", "row 2"]),
    "NaN": (changed(x=at(GOOD["x"], (3, 1), np.nan)), ["'x'", "nan", "[3, 1]"]),
    "infinity": (changed(x=at(GOOD["x"], (5, 0), -np.inf)), ["'x'", "-inf", "[5, 0]"]),
    "negative weight": (changed(sample_weights=at(np.ones(7), 1, -2)), ["'sample_weights'", "-2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_named(case):
    arrays, words = BAD[case]
    with pytest.raises(DataError) as error:
        ArrayDataset(arrays, "'cells.npz'").check(make_manifest(), {})
    message = str(error.value)
    assert all(word in message for word in ["'cells.npz'", *words]), message


UNEVEN = {
    "no array": ({}, "no array"),
    "no rows": ({"x": np.zeros((0, 3))}, "'x' has 0 rows"),
    "unequal": ({"x": np.zeros((5, 3)), "labels": np.zeros(4)}, "'x' 5, 'labels' 4"),
    "single value": ({"x": np.float32(3)}, "'x' is a single value"),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_rows_are_counted_at_the_door(case):
    arrays, word = UNEVEN[case]
    with pytest.raises(DataError, match=word):
        ArrayDataset({name: np.asarray(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    "given",
    [
        {"x": np.ones((7, 3), np.float64) / 4},
        {"x": np.ones((7, 3), np.float16)},
        {"labels": np.arange(7, dtype=np.uint8) % 4},
        {"labels": np.arange(7, dtype=np.uint64) % 4},
    ],
    ids=["float64", "float16", "uint8 labels", "uint64 labels"],
)
def test_types_are_converted_when_batches_are_used(given):
    data = ArrayDataset(changed(**given))
    data.check(make_manifest(), {})
    for name, array in given.items():
        assert data.arrays[name] is array


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "there is no data file"),
        (b"PK\x03\x04 but then not", "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["missing", "damaged", "empty"],
)
def test_a_file_that_is_no_archive_is_named(tmp_path, content, word):
    path = tmp_path / "cells.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=word):
        ArrayDataset.load(path)


def lying_header(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"123")


def lone_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def damaged_block(path):
    np.savez_compressed(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)


@pytest.mark.parametrize("write", [lying_header, lone_array, damaged_block])
def test_an_archive_that_is_not_what_it_says_is_named(tmp_path, write):
    write(tmp_path / "cells.npz")
    with pytest.raises(DataError, match=r"cells\.npz' cannot be read as \.npz"):
        ArrayDataset.load(tmp_path / "cells.npz")


def test_an_archive_larger_than_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "cells.npz", x=np.zeros((1000, 500)))
    monkeypatch.setattr("onnxft.data.arrays.physical_memory", lambda: 3_999_999)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, name: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match=r"cells\.npz' unpacks to 0\.0 GB, and this machine has"):
        ArrayDataset.load(tmp_path / "cells.npz")


def test_python_objects_are_refused(tmp_path):
    path = tmp_path / "cells.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"cells\.npz.*arrays of numbers"):
        ArrayDataset.load(path)


def test_other_formats_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cells\.csv.*not an \.npz file"):
        ArrayDataset.load(tmp_path / "cells.csv")


def test_load_reads_what_savez_wrote(tmp_path):
    path = tmp_path / "cells.npz"
    np.savez(path, **GOOD)
    loaded = ArrayDataset.load(path)
    assert len(loaded) == 7
    assert loaded.source == f"'{path}'"
    for name, array in GOOD.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)


def test_the_fingerprint_sees_names_shapes_types_and_values():
    sets = [
        {"x": np.zeros((2, 3))}, {"y": np.zeros((2, 3))}, {"x": np.zeros((2, 3, 1))}, {"x": np.zeros((2, 3), np.int64)},
        {"x": at(np.zeros((2, 3)), (1, 2), 1)},
    ]  # fmt: skip
    prints = [ArrayDataset(arrays).fingerprint() for arrays in sets]
    assert len(set(prints)) == len(sets)
    assert prints[0] == ArrayDataset({"x": np.zeros((2, 3))}).fingerprint()
