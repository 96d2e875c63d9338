"""What a batch must be: names, shapes, element types and values are checked before the runtime sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft.errors import DataError
from onnxft.manifest import BATCH, Distribution, Loss, Port
from onnxft.runtime.batches import check_batch, draw, pad, parts
from onnxft.runtime.session import TrainSession

PORTS = (
    Port("image", "input", "float32", (BATCH, 2, 3)),
    Port("ids", "input", "int64", (BATCH, 4)),
    Port("labels", "label", "int64", (BATCH,)),
)
LOSS = Loss("cross_entropy", "output", num_classes=5)
ROWS = 3


def good() -> dict[str, Any]:
    return {
        "image": np.ones((ROWS, 2, 3), np.float32),
        "ids": np.arange(ROWS * 4).reshape(ROWS, 4),
        "labels": np.array([0, 4, 2]),
    }


def with_value(name: str, index: tuple[int, ...], value: float) -> dict[str, Any]:
    batch = good()
    batch[name][index] = value
    return {name: batch[name]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (with_value("labels", (1,), 5), ["'labels' has the value 5 at row 101", "classes are 0 to 4"]),
        (with_value("labels", (2,), -1), ["'labels' has the value -1 at row 102"]),
        (with_value("image", (1, 0, 2), np.nan), ["'image' has the value nan at [101, 0, 2] (row 101)"]),
        (with_value("image", (2, 1, 0), -np.inf), ["'image' has the value -inf at [102, 1, 0]"]),
        ({"image": np.full((ROWS, 2, 3), 1e300)}, ["'image' has the value 1e+300 at [100, 0, 0]"]),
        ({"pixels": np.ones(1)}, ["no input 'pixels'. Known: 'image', 'ids', 'labels', 'sample_weights'"]),
        ({"imag": np.ones(1)}, ["no input 'imag'. Did you mean 'image'?"]),
        ({"sample_weight": np.ones(ROWS)}, ["Did you mean 'sample_weights'?"]),
        ({"labels": None}, ["the batch lacks 'labels'; it has 'image', 'ids'"]),
        ({"image": np.ones((ROWS, 3, 2), np.float32)}, ["[3, 3, 2], the model takes ['batch', 2, 3]"]),
        ({"image": np.ones((ROWS, 6), np.float32)}, ["'image' has the shape [3, 6]"]),
        ({"labels": np.zeros((ROWS, 1), np.int64)}, ["'labels' has the shape [3, 1]"]),
        ({"labels": np.int64(1)}, ["'labels' has the shape []"]),
        ({"image": np.ones((ROWS, 2, 3), np.uint8)}, ["uint8, the model takes float32", "Pictures are scaled"]),
        ({"image": np.ones((ROWS, 2, 3), np.complex64)}, ["element type complex64"]),
        ({"image": [["a"]]}, ["element type <U1"]),
        ({"labels": np.zeros(ROWS)}, ["'labels' has the element type float64, the model takes int64"]),
        ({"labels": np.zeros(ROWS, bool)}, ["'labels' has the element type bool"]),
        ({"ids": np.full((ROWS, 4), 2**63, np.uint64)}, ["'ids' has values that do not fit int64"]),
        ({"labels": np.array([0, 1])}, ["equally many rows", "'labels': 2"]),
        ({"sample_weights": np.ones(2)}, ["'sample_weights' has the shape [2]", "each of 3 rows"]),
        ({"sample_weights": np.ones((3, 1))}, ["'sample_weights' has the shape [3, 1]"]),
        ({"sample_weights": np.array([1.0, -0.5, 1.0])}, ["must be finite and not negative; the smallest is -0.5"]),
        ({"sample_weights": np.array([1.0, np.nan, 1.0])}, ["must be finite"]),
        ({"sample_weights": np.array(["a", "b", "c"])}, ["type <U1"]),
        ({n: v[:0] for n, v in good().items()}, ["the batch has no rows"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], words: list[str]) -> None:
    batch = {n: v for n, v in {**good(), **changes}.items() if v is not None}
    with pytest.raises(DataError) as err:
        check_batch(batch, PORTS, LOSS, {}, first_row=100)
    for word in words:
        assert word in str(err.value)


@pytest.mark.parametrize(
    ("name", "dtype", "target"),
    [("image", "float64", "float32"), ("image", "float16", "float32"), ("labels", "int32", "int64"),
     ("labels", "uint8", "int64"), ("ids", "int16", "int64")],
)  # fmt: skip
def test_element_types_of_one_kind_are_converted(name: str, dtype: str, target: str) -> None:
    batch = good()
    checked, rows = check_batch({**batch, name: batch[name].astype(dtype)}, PORTS, LOSS, {})
    assert (checked[name].dtype.name, rows) == (target, ROWS)
    np.testing.assert_array_equal(checked[name], batch[name])


def test_without_labels_none_are_asked_for_and_none_taken() -> None:
    batch = good()
    labels = batch.pop("labels")
    assert set(check_batch(batch, PORTS, LOSS, {}, labels=False)[0]) == {"image", "ids"}
    for name, value in (("labels", labels), ("sample_weights", np.ones(ROWS))):
        with pytest.raises(DataError, match=f"no input '{name}'"):
            check_batch({**batch, name: value}, PORTS, LOSS, {}, labels=False)


def test_padding_repeats_the_last_row_with_weight_0() -> None:
    batch = good()
    padded = pad({**batch, "sample_weights": np.array([2, 3, 4], np.float32)}, ROWS, 5)
    assert padded["sample_weights"].tolist() == [2, 3, 4, 0, 0]
    for name, value in batch.items():
        np.testing.assert_array_equal(padded[name][:ROWS], value)
        np.testing.assert_array_equal(padded[name][ROWS:], np.stack([value[-1]] * 2))
    assert pad(batch, ROWS, ROWS)["sample_weights"].tolist() == [1, 1, 1]


def test_parts_cover_all_rows_in_order() -> None:
    found = list(parts({"x": np.arange(14).reshape(7, 2)}, 3))
    assert [(start, len(part["x"])) for start, part in found] == [(0, 3), (3, 3), (6, 1)]
    np.testing.assert_array_equal(np.concatenate([p["x"] for _, p in found]), np.arange(14).reshape(7, 2))


@pytest.mark.parametrize("call", ["step", "accumulate", "gradients", "evaluate"])
@pytest.mark.parametrize(("value", "row"), [(5, 0), (-1, 2)])
def test_every_call_checks_its_labels(call: str, value: int, row: int, exported: Callable[..., Path]) -> None:
    """The runtime would take them: on some providers it reads other memory."""
    labels = np.zeros(ROWS, np.int64)
    labels[row] = value
    batch = {"x": np.ones((ROWS, 7), np.float32), "labels": labels}
    with TrainSession(exported("mlp"), threads=1) as session:
        options = {"lr": 0.1} if call == "step" else {}
        with pytest.raises(DataError, match=f"'labels' has the value {value} at row {row}; classes are 0 to 4"):
            getattr(session, call)(batch, **options)


def test_an_evaluation_names_the_row_of_the_data_set(exported: Callable[..., Path]) -> None:
    batch = {"x": np.ones((40, 7), np.float32), "labels": np.zeros(40, np.int64)}
    batch["labels"][37] = 9
    with TrainSession(exported("mlp"), threads=1) as session, pytest.raises(DataError, match="value 9 at row 37;"):
        session.evaluate(batch)


SEQUENCES = (
    Port("ids", "input", "int64", (BATCH, "sequence")),
    Port("mask", "input", "float32", (BATCH, 2, "sequence")),
    Port("labels", "label", "int64", (BATCH,)),
)


def test_other_symbolic_dimensions_have_the_size_of_the_session() -> None:
    batch = {"ids": np.ones((3, 6), np.int64), "mask": np.ones((3, 2, 6), np.float32), "labels": np.array([0, 1, 2])}
    assert check_batch(batch, SEQUENCES, LOSS, {"sequence": 6})[1] == 3
    with pytest.raises(DataError, match=r"'ids' has the shape \[3, 6\].*this session fixes 'sequence' to 4"):
        check_batch(batch, SEQUENCES, LOSS, {"sequence": 4})
    masks = (Port("random.0", "random", "float32", (BATCH, "sequence"), distribution=Distribution("dropout", 0.5)),)
    assert draw(masks, {BATCH: 3, "sequence": 6}, seed=0, step=0, micro_step=0)["random.0"].shape == (3, 6)
