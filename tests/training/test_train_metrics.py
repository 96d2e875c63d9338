from __future__ import annotations

import numpy as np
import pytest

from onnxft.manifest import Loss
from onnxft.training import metrics

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn gives the expected numbers")


def draw(name):
    rng = np.random.default_rng(3)
    return {
        "five classes": (rng.integers(0, 5, 43), rng.integers(0, 5, 43)),
        "a class only among the labels": (np.array([0, 1, 2, 2, 1]), np.array([0, 1, 1, 0, 1])),
        "a class only predicted": (np.array([0, 1, 1, 0]), np.array([0, 3, 1, 3])),
        "all right": (np.array([2, 0, 1]), np.array([2, 0, 1])),
        "one row": (np.array([2]), np.array([1])),
    }[name]


CLASS_CASES = ["five classes", "a class only among the labels", "a class only predicted", "all right", "one row"]
CLASS_METRICS = [
    (metrics.accuracy, sklearn.accuracy_score),
    (metrics.macro_f1, lambda a, b: sklearn.f1_score(a, b, average="macro", zero_division=0)),
    (metrics.balanced_accuracy, lambda a, b: sklearn.recall_score(a, b, labels=np.unique(a), average="macro")),
]


@pytest.mark.parametrize("case", CLASS_CASES)
@pytest.mark.parametrize(("ours", "theirs"), CLASS_METRICS, ids=lambda f: getattr(f, "__name__", ""))
def test_class_metrics_equal_sklearn(case, ours, theirs):
    labels, classes = draw(case)
    assert ours(labels, classes) == pytest.approx(theirs(labels, classes), rel=1e-12)


def test_balanced_accuracy_equals_sklearns_own():
    labels, classes = draw("five classes")
    ours = metrics.balanced_accuracy(labels, classes)
    assert ours == pytest.approx(sklearn.balanced_accuracy_score(labels, classes), rel=1e-12)
    assert ours != pytest.approx(metrics.accuracy(labels, classes))


@pytest.mark.parametrize("digits", [8, 1, 0], ids=["no ties", "ties", "nearly all tied"])
def test_auc_equals_sklearn(digits):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 61)
    scores = np.round(rng.normal(size=61) + labels, digits)
    assert metrics.auc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores), rel=1e-12)


def test_auc_of_one_class_is_nan():
    assert np.isnan(metrics.auc(np.ones(4, int), np.arange(4.0)))


VALUE_CASES = {
    "column": ((17,), (17,)),
    "three columns": ((17, 3), (17, 3)),
    "columns with a dimension of one": ((17,), (17, 1)),
}


@pytest.mark.parametrize("case", VALUE_CASES)
def test_value_metrics_equal_sklearn(case):
    target_shape, output_shape = VALUE_CASES[case]
    rng = np.random.default_rng(7)
    targets = rng.normal(size=target_shape).astype(np.float32)
    outputs = (targets.reshape(output_shape) + rng.normal(size=output_shape)).astype(np.float32)
    wide = targets.astype(float).reshape(17, -1), outputs.astype(float).reshape(17, -1)
    assert metrics.mae(targets, outputs) == pytest.approx(sklearn.mean_absolute_error(*wide), rel=1e-6)
    assert metrics.rmse(targets, outputs) == pytest.approx(sklearn.mean_squared_error(*wide) ** 0.5, rel=1e-6)
    assert metrics.r2(targets, outputs) == pytest.approx(sklearn.r2_score(*wide), rel=1e-6)


@pytest.mark.parametrize("outputs", [[2.0, 2.0, 2.0], [2.0, 2.0, 3.0]], ids=["met", "missed"])
def test_r2_without_spread_equals_sklearn(outputs):
    targets = np.full(3, 2.0)
    assert metrics.r2(targets, np.array(outputs)) == sklearn.r2_score(targets, outputs)


def test_r2_of_one_row_is_nan():
    assert np.isnan(metrics.r2(np.ones(1), np.zeros(1)))


def test_measure_takes_the_class_of_the_greatest_score():
    scores = np.array([[0.1, 2.0], [3.0, -1.0], [0.0, 0.5]], np.float32)
    measured = metrics.measure(Loss("cross_entropy", "y", 2), scores, np.array([1, 0, 0]))
    assert measured == {
        "accuracy": pytest.approx(2 / 3),
        "balanced_accuracy": pytest.approx(3 / 4),
        "macro_f1": pytest.approx(2 / 3),
        "auc": 1.0,
    }


@pytest.mark.parametrize("loss", [Loss("mse", "y"), Loss("cross_entropy", "y", 2), Loss("cross_entropy", "y", 3)])
def test_measure_gives_exactly_the_named_metrics(loss):
    output = np.arange(12.0).reshape(4, 3)[:, : loss.num_classes or 3]
    labels = output * 2 if loss.kind == "mse" else np.array([0, 1, 1, 0])
    assert ["loss", *metrics.measure(loss, output, labels)] == metrics.names(loss)
    assert metrics.default_metric(loss) in metrics.names(loss)
    assert set(metrics.names(loss)) <= set(metrics.BETTER)
