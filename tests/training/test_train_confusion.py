"""The confusion matrix: what is counted, the table, the picture, and that it is the best epoch's."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from training_fake_session import FakeSession, make_manifest, make_rows

from onnxft.manifest import Loss
from onnxft.training.confusion import Confusion
from onnxft.training.curves import can_plot
from onnxft.training.metrics import reduce

LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 2]]
LABELS = np.array([0, 1, 2, 2, 0])
COUNTED = {
    "one class": (Loss("cross_entropy", "y", 3), LOGITS, LABELS, [[1, 0, 1], [0, 1, 0], [0, 1, 1]]),
    "ignored labels": (
        Loss("cross_entropy", "y", 3, ignore_index=-100), LOGITS, np.array([0, 1, -100, 2, -100]),
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ),
    "each token": (
        Loss("cross_entropy", "y", 3, class_axis=2, per_position=True), LOGITS[None], LABELS[None],
        [[1, 0, 1], [0, 1, 0], [0, 1, 1]],
    ),
    "binary": (
        Loss("bce_with_logits", "y", 1), np.array([[1.0], [-1.0], [2.0]]), np.array([[1.0], [1.0], [0.0]]),
        [[0, 1], [1, 1]],
    ),
    "distributions": (
        Loss("kl_div", "y", 3), LOGITS, np.eye(3)[LABELS], [[1, 0, 1], [0, 1, 0], [0, 1, 1]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_counted(case):
    loss, output, labels, counts = COUNTED[case]
    matrix = Confusion.of(loss, reduce(loss, output, labels))
    assert matrix.counts.tolist() == counts
    assert matrix.names == tuple(map(str, range(len(counts))))


NOT_COUNTED = {
    "several labels": (Loss("bce_with_logits", "y", 3), LOGITS, LOGITS),
    "values": (Loss("mse", "y"), LOGITS, LOGITS),
    "a loss of the model's own": (Loss("model", "y"), None, None),
    "a vocabulary": (Loss("cross_entropy", "y", 1001), np.zeros((2, 1001), np.float32), np.array([3, 4])),
}


@pytest.mark.parametrize("case", NOT_COUNTED)
def test_what_has_no_matrix(case):
    loss, output, labels = NOT_COUNTED[case]
    assert Confusion.of(loss, reduce(loss, output, labels)) is None


def test_names_are_those_of_the_classes_where_there_are_as_many():
    loss, output, labels, _ = COUNTED["one class"]
    reduced = reduce(loss, output, labels)
    assert Confusion.of(loss, reduced, ["a", "b", "c"]).names == ("a", "b", "c")
    assert Confusion.of(loss, reduced, ["a", "b"]).names == ("0", "1", "2")


def test_the_table_is_read_back_with_any_name():
    names = ("plain", 'with "quotes", comma', "line\nbreak", "return\rhere", "größer 猫")
    matrix = Confusion(np.arange(25).reshape(5, 5), names)
    again = Confusion.from_csv(matrix.to_csv())
    assert again.names == names
    np.testing.assert_array_equal(again.counts, matrix.counts)
    assert again.counts.dtype == np.int64


@pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")
@pytest.mark.parametrize("size", [2, 10, 50])
def test_a_picture_with_any_name(size):
    names = tuple(f"{i} $costs$ $5 猫, a very long name of a class" if i % 2 else str(i) for i in range(size))
    matrix = Confusion(np.diag(np.arange(size)), names)
    assert matrix.can_be_drawn
    assert matrix.to_png("epoch 3").startswith(b"\x89PNG")


def test_more_classes_than_can_be_read_are_not_drawn():
    assert not Confusion(np.eye(51, dtype=np.int64), tuple(map(str, range(51)))).can_be_drawn


def test_a_run_keeps_the_matrix_of_its_best_epoch(run_loop, drawn):
    run = run_loop(lr=40.0, epochs=4, metric="loss")
    assert run.best_epoch != run.epochs, "the rate is meant to be too high"
    expected = FakeSession(make_manifest())
    expected.set_parameters({"weight": np.frombuffer((run.directory / "model.onnx").read_bytes()).reshape(4, 3)})
    rows = make_rows(9, seed=1)
    predicted = expected.evaluate(rows).outputs["y"].argmax(axis=1)
    matrix = Confusion.from_csv((run.directory / "confusion_matrix.csv").read_bytes())
    for label in range(4):
        for column in range(4):
            assert matrix.counts[label, column] == np.sum((rows["labels"] == label) & (predicted == column))
    assert ("confusion_matrix.png" in run.files) == ("curves.png" in run.files) == drawn


def test_values_have_no_matrix_in_their_run(run_loop):
    x = make_rows(17)["x"]
    run = run_loop(manifest=make_manifest("mse", width=2), data={"x": x, "labels": x[:, :2]}, val=None, epochs=1)
    assert not [name for name in run.files if name.startswith("confusion")]


def test_the_summary_tells_what_was_asked_and_obtained_and_how_it_ended(run_loop):
    run = run_loop(lr=0.5, epochs=9, patience=2, metric="loss", val={**make_rows(9), "labels": np.arange(9) % 4})
    summary = json.loads((run.directory / "metrics.json").read_text())
    with (run.directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert summary["end"] == run.end == "early"
    assert summary["epochs"] == {"asked": 9, "made": run.epochs}
    assert summary["provider"] == {"asked": "cpu", "obtained": "cpu"}
    assert (summary["metric"], summary["best_epoch"], summary["evaluated"]) == ("loss", run.best_epoch, "val")
    for key, epoch in (("before", 0), ("best", run.best_epoch), ("last", run.epochs)):
        row = {name.removeprefix("val_"): value for name, value in rows[epoch].items() if name.startswith("val_")}
        assert {name: "" if v is None else repr(v) for name, v in summary[key].items()} == row


def test_what_is_not_a_number_is_null_in_the_summary(run_loop):
    one_class = {**make_rows(6, width=2), "labels": np.zeros(6, int)}
    run = run_loop(manifest=make_manifest(width=2), data=one_class, val=one_class, epochs=1, lr=0.1)
    text = (run.directory / "metrics.json").read_text()
    assert json.loads(text)["before"]["auc"] is None
    assert "NaN" not in text
