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


def batches(loss, output, labels, *, value=0.7, size=7):
    """The metrics, gathered batch by batch."""
    parts = [metrics.reduce(loss, output[i : i + size], labels[i : i + size]) for i in range(0, len(output), size)]
    return metrics.measure(loss, metrics.join(parts), value)


def test_the_class_of_the_greatest_score_is_predicted():
    scores = np.array([[0.1, 2.0], [3.0, -1.0], [0.0, 0.5]], np.float32)
    assert batches(Loss("cross_entropy", "y", 2), scores, np.array([1, 0, 0]), size=2) == {
        "loss": 0.7,
        "accuracy": pytest.approx(2 / 3),
        "balanced_accuracy": pytest.approx(3 / 4),
        "macro_f1": pytest.approx(2 / 3),
        "auc": 1.0,
    }


def softmax(x):
    e = np.exp(x.astype(float))
    return e / e.sum(axis=1, keepdims=True)


def of_classes(loss, logits, labels):
    predicted = logits.argmax(axis=1)
    expected = {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn.f1_score(labels, predicted, average="macro", zero_division=0),
    }
    if loss.num_classes == 2:
        expected["auc"] = sklearn.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    else:
        expected["auc"] = sklearn.roc_auc_score(labels, softmax(logits), multi_class="ovr", average="macro")
    return expected


def of_a_binary_label(loss, logits, labels):
    y, x = labels.reshape(-1) >= 0.5, logits.reshape(-1)
    return {
        "accuracy": sklearn.accuracy_score(y, x > 0),
        "balanced_accuracy": sklearn.balanced_accuracy_score(y, x > 0),
        "macro_f1": sklearn.f1_score(y, x > 0, average="macro"),
        "auc": sklearn.roc_auc_score(y, x),
    }


def of_several_labels(loss, logits, labels):
    y = labels >= 0.5
    both = [i for i in range(y.shape[1]) if 0 < y[:, i].sum() < len(y)]
    return {
        "accuracy": sklearn.accuracy_score(y.ravel(), logits.ravel() > 0),
        "macro_f1": sklearn.f1_score(y, logits > 0, average="macro", zero_division=0),
        "micro_f1": sklearn.f1_score(y, logits > 0, average="micro", zero_division=0),
        "auc": sklearn.roc_auc_score(y[:, both], logits[:, both], average="macro"),
    }


def of_values(loss, outputs, targets):
    t, o = (a.reshape(len(a), -1).astype(float) for a in (targets, outputs))
    return {
        "mae": sklearn.mean_absolute_error(t, o),
        "rmse": sklearn.mean_squared_error(t.ravel(), o.ravel()) ** 0.5,
        "r2": sklearn.r2_score(t, o),
    }


def draw_task(name):
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 2, (53, 5)).astype(np.float32)
    classes = rng.integers(0, 5, 53)
    match name:
        case "two classes":
            return Loss("cross_entropy", "y", 2), logits[:, :2], classes % 2, of_classes
        case "five classes":
            return Loss("cross_entropy", "y", 5), logits, classes, of_classes
        case "binary":
            return Loss("bce_with_logits", "y", 1), logits[:, 0], (classes % 2).astype(np.float32), of_a_binary_label
        case "binary column":
            return Loss("bce_with_logits", "y", 1), logits[:, :1], (classes % 2)[:, None], of_a_binary_label
        case "labels":
            labels = (rng.random((53, 5)) < 0.3).astype(np.float32)
            labels[:, 1], logits[:, 1] = 0, -1  # a label that never is
            labels[:, 3] = 1  # one that always is
            return Loss("bce_with_logits", "y", 5), logits, labels, of_several_labels
        case "soft labels":
            return Loss("bce_with_logits", "y", 5), logits, rng.random((53, 5)), of_several_labels
        case "values":
            return Loss("huber", "y"), logits, logits + rng.normal(size=logits.shape).astype(np.float32), of_values


@pytest.mark.parametrize(
    "name", ["two classes", "five classes", "binary", "binary column", "labels", "soft labels", "values"]
)
def test_what_is_gathered_by_batches_equals_sklearn(name):
    loss, output, labels, expected = draw_task(name)
    measured = batches(loss, output, labels)
    assert measured.pop("loss") == 0.7
    assert measured == pytest.approx(expected(loss, output, labels), rel=1e-6)
    assert ["loss", *measured] == metrics.names(loss)


def test_probabilities_as_labels_are_measured_by_their_greatest():
    rng = np.random.default_rng(2)
    logits, p = rng.normal(size=(20, 4, 3)), rng.random((20, 4, 3))
    loss = Loss("kl_div", "y", 4, per_position=True)
    expected = sklearn.accuracy_score(p.argmax(1).ravel(), logits.argmax(1).ravel())
    assert batches(loss, logits, p) == {"loss": 0.7, "accuracy": pytest.approx(expected)}


def test_ignored_and_shifted_labels_do_not_count():
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(9, 6, 3)), rng.integers(0, 3, (9, 6))
    labels[2, 3:] = -100
    loss = Loss("cross_entropy", "y", 3, class_axis=2, ignore_index=-100, shift=1, per_position=True)
    measured = batches(loss, logits, labels, value=1.5)
    ahead, predicted = labels[:, 1:].ravel(), logits[:, :-1].argmax(2).ravel()
    kept = ahead != -100
    assert measured["accuracy"] == pytest.approx(sklearn.accuracy_score(ahead[kept], predicted[kept]))
    assert measured["perplexity"] == pytest.approx(np.exp(1.5))
    assert "auc" not in measured


def test_the_perplexity_of_a_lost_model_is_infinite():
    loss = Loss("cross_entropy", "y", 3, class_axis=2, ignore_index=-100, shift=1)
    reduced = {"labels": np.array([1]), "predicted": np.array([1])}
    assert metrics.measure(loss, reduced, 1e4)["perplexity"] == np.inf


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0, 3.0)}])
def test_a_smoothed_or_weighted_loss_gives_no_perplexity(changes):
    loss = Loss("cross_entropy", "y", 3, class_axis=2, ignore_index=-100, shift=1, **changes)
    assert "perplexity" not in metrics.names(loss)


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (Loss("cross_entropy", "y", 100), True),
        (Loss("cross_entropy", "y", 101), False),
        (Loss("cross_entropy", "y", 3, per_position=True), False),
        (Loss("cross_entropy", "y", 2, per_position=True), True),
        (Loss("bce_with_logits", "y", 101), False),
        (Loss("bce_with_logits", "y", 3, per_position=True), False),
        (Loss("bce_with_logits", "y", 1, per_position=True), False),
    ],
)
def test_scores_are_kept_where_they_are_few(loss, kept):
    assert ("auc" in metrics.names(loss)) == kept
    count = loss.num_classes
    shape = (4, count, 2) if loss.per_position else (4, count)
    labels = np.zeros((4, 2) if loss.per_position else 4, int) if loss.kind == "cross_entropy" else np.zeros(shape)
    assert ("scores" in metrics.reduce(loss, np.zeros(shape), labels)) == kept


def test_the_auc_of_classes_leaves_out_those_that_do_not_occur():
    rng = np.random.default_rng(9)
    logits, labels = rng.normal(size=(30, 3)), rng.integers(0, 2, 30)
    p = softmax(logits)
    expected = np.mean([sklearn.roc_auc_score(labels == c, p[:, c]) for c in (0, 1)])
    assert batches(Loss("cross_entropy", "y", 3), logits, labels)["auc"] == pytest.approx(expected)


def test_a_loss_of_the_models_own_is_all_there_is():
    loss = Loss("model", "y")
    assert metrics.measure(loss, metrics.join([metrics.reduce(loss, None, None)] * 2), 0.3) == {"loss": 0.3}


def test_confusion_equals_sklearn():
    rng = np.random.default_rng(6)
    labels, predicted = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    counts = metrics.confusion(labels, predicted, 6)
    np.testing.assert_array_equal(counts, sklearn.confusion_matrix(labels, predicted, labels=range(6)))
    assert counts.dtype.kind == "i"


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (Loss("mse", "y"), "loss"),
        (Loss("l1", "y"), "loss"),
        (Loss("kl_div", "y", 3), "loss"),
        (Loss("model", "y"), "loss"),
        (Loss("cross_entropy", "y", 3), "balanced_accuracy"),
        (Loss("cross_entropy", "y", 3, class_axis=2, ignore_index=-1, shift=1), "loss"),
        (Loss("bce_with_logits", "y", 1), "balanced_accuracy"),
        (Loss("bce_with_logits", "y", 4), "macro_f1"),
    ],
)
def test_the_metric_that_chooses(loss, metric):
    assert metrics.default_metric(loss) == metric
    assert metric in metrics.names(loss)
    assert set(metrics.names(loss)) <= set(metrics.BETTER)
