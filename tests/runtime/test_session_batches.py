"""What a batch must be: names, shapes, element types and values are checked before the runtime sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxft.errors import DataError
from onnxft.manifest import BATCH, Distribution, Loss, Port
from onnxft.runtime.batches import check_batch, pad, parts, require_weight
from onnxft.runtime.random_inputs import draw
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


def labelled(labels: Any, kind: str, shape: tuple[int, ...], **options: Any) -> np.ndarray:
    """Checked labels of a loss on an output (batch, *shape), the first row being number 100."""
    ports = (Port("x", "input", "float32", (BATCH,)), Port("labels", "label", "float32", (BATCH, *shape)))
    labels = np.asarray(labels)
    batch = {"x": np.zeros(len(labels), np.float32), "labels": labels}
    return check_batch(batch, ports, Loss(kind, "y", **options), {}, first_row=100)[0]["labels"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        (
            "bce_with_logits",
            [[0.0, 1.0], [0.5, 1.5]],
            "'labels' has the value 1.5 at [101, 1] (row 101); bce_with",
        ),
        ("bce_with_logits", [[0.0, -0.1], [0.5, 1.0]], "the value -0.10000000149011612 at [100, 1] (row 100)"),
        ("bce_with_logits", [[0, 1], [2, 0]], "the value 2.0 at [101, 0] (row 101)"),
        ("bce_with_logits", [[0.0, np.nan], [0.5, 1.0]], "the value nan at [100, 1]"),
        (
            "kl_div",
            [[0.5, 0.5], [0.5, 0.6]],
            "probabilities that add up to 1.1 at row 101; kl_div takes a",
        ),
        ("kl_div", [[0.0, 0.998], [0.5, 0.5]], "add up to 0.998 at row 100"),
        ("kl_div", [[0.5, 0.5], [1.1, -0.1]], "'labels' has the value 1.100000023841858 at [101, 0] (row 101); kl_div"),
        ("kl_div", [[0, 1], [1, 0]], "'labels' has the element type int64, the model takes float32"),
        ("mse", [[0, 1], [1, 0]], "'labels' has the element type int64, the model takes float32"),
    ],
)
def test_labels_that_do_not_fit_the_loss(kind: str, labels: Any, words: str) -> None:
    with pytest.raises(DataError) as err:
        labelled(labels, kind, (2,), num_classes=2)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("kind", "labels", "shape", "expected"),
    [
        ("bce_with_logits", [0, 1, 1], (1,), [[0], [1], [1]]),
        ("bce_with_logits", [True, False], (), [1, 0]),
        ("bce_with_logits", [[0.25], [1]], (1,), [[0.25], [1]]),
        ("mse", [0.5, -3.0], (1,), [[0.5], [-3]]),
        ("kl_div", [[0.2, 0.8004]], (2,), [[0.2, 0.8004]]),
    ],
)
def test_labels_as_a_user_has_them(kind: str, labels: Any, shape: tuple[int, ...], expected: Any) -> None:
    found = labelled(labels, kind, shape)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


@pytest.mark.parametrize(
    ("labels", "changes", "weights", "words"),
    [
        (
            [[0, 9, 9], [1, 9, 9]],
            {"shift": 1, "class_axis": 2},
            None,
            "each label of the batch is 9, which",
        ),
        ([9, 9, 1], {}, [1, 1, 0], "is 9, which does not count, so there is no mean gradient"),
        ([3, 9], {"class_weights": (1.0, 1.0, 1.0, 0.0)}, None, "or belongs to a class of weight 0"),
        ([0, 1], {}, [0, 0], "all 2 rows of the batch have weight 0"),
        ([9, 1], {}, None, None),
        ([3, 1], {"class_weights": (1.0, 1.0, 1.0, 0.0)}, [0, 1], None),
        ([[9, 9, 2], [1, 9, 9]], {"shift": 1, "class_axis": 2}, None, None),
    ],
)
def test_a_batch_must_have_a_label_that_counts(labels: Any, changes: Any, weights: Any, words: str | None) -> None:
    loss = Loss("cross_entropy", "y", num_classes=4, ignore_index=9, **changes)
    batch = {"labels": np.array(labels)} | ({} if weights is None else {"sample_weights": np.array(weights)})
    if words is None:
        require_weight(batch, loss)
        return
    with pytest.raises(DataError) as err:
        require_weight(batch, loss)
    assert words in str(err.value)


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
