"""Safetensors files written tensor by tensor, read by the library of that name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from onnxft.tensor_file import TYPES, write_tensors

RNG = np.random.default_rng(3)
TENSORS = {
    "bytes": RNG.integers(0, 255, 7).astype(np.uint8),  # an odd number: what follows must be aligned all the same
    "läyer.weight": RNG.standard_normal((3, 5)),
    "transposed": RNG.standard_normal((4, 6)).astype(np.float32).T,
    "every other": np.arange(10, dtype=np.int64)[::2],
    "half": RNG.standard_normal((2, 1, 3)).astype(np.float16),
    "mask": np.array([[True], [False]]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def test_what_is_written_is_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    places = write_tensors(path, TENSORS)
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
        assert read[name].tobytes() == value.tobytes(), name
    content = path.read_bytes()
    for name, place in places.items():
        assert content[place.offset : place.offset + place.length] == TENSORS[name].tobytes(), name
        assert place.offset % TENSORS[name].itemsize == 0, name


def test_bfloat16_is_itself(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes comes with onnx, which is not installed here")
    value = RNG.standard_normal((3, 2)).astype(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "w", {"w": value})
    with safe_open(tmp_path / "w", "numpy") as file:
        assert file.get_slice("w").get_dtype() == "BF16"
        assert file.get_slice("w").get_shape() == [3, 2]
    assert (tmp_path / "w").read_bytes().endswith(value.tobytes())


def test_a_file_of_nothing(tmp_path: Path) -> None:
    assert write_tensors(tmp_path / "w", {}) == {}
    assert load_file(tmp_path / "w") == {}


def test_every_type_has_its_size() -> None:
    sizes = {"BOOL": 1, "BF16": 2, **{f"{kind}{bits}": bits // 8 for kind in "FIU" for bits in (8, 16, 32, 64)}}
    numpy_names = {name for name in TYPES if name != "bfloat16"}
    assert {TYPES[name]: np.dtype(name).itemsize for name in numpy_names}.items() <= sizes.items()
