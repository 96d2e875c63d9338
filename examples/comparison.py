"""What the demos share: the linear probe that a tuned model must beat, and the table of the seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from onnxft.plan import GENERATORS
from onnxft.training.metrics import accuracy, balanced_accuracy

CONSOLE = Console(highlight=False)


def arguments(description: str, *, methods: bool = False) -> dict[str, Any]:
    """What the command line asks for: seeds, provider, precision, generator.

    With `methods` also the method, or None, and how frozen weights are stored.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="?", default=1, help="how often to train, each with a seed of its own")
    parser.add_argument("provider", nargs="?", default="cpu", help="see `onnxft doctor`")
    parser.add_argument("precision", nargs="?", default="float32")
    parser.add_argument(
        "--generator", choices=GENERATORS, default="native",
        help="of the training graphs; for ort-training see `onnxft setup ort-training`",
    )  # fmt: skip
    if methods:
        parser.add_argument("--method", help="what is trained, as `onnxft export --method` takes it: lora:8,head")
        parser.add_argument(
            "--frozen-precision", choices=("float32", "float16", "bfloat16", "int8"), default="float32",
            help="in which the weights that are not trained are stored",
        )  # fmt: skip
    return vars(parser.parse_args())


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], test: np.ndarray
) -> np.ndarray:
    """Classes of `test` by a logistic regression on frozen features (rows, features).

    `train` and `val` are (features, labels). Balanced accuracy on `val`, which also chooses the epoch of the tuned
    model, chooses the regularization and whether classes weigh alike; then all that was seen is fitted.
    """

    def fitted(way: tuple[float, str | None], x: np.ndarray, labels: np.ndarray) -> Pipeline:
        c, weights = way
        regression = LogisticRegression(C=c, class_weight=weights, max_iter=2000)
        return make_pipeline(StandardScaler(), regression).fit(x, labels)

    ways = product(np.logspace(-5, 0, 6), (None, "balanced"))
    best = max(ways, key=lambda way: balanced_accuracy(val[1], fitted(way, *train).predict(val[0])))
    return fitted(best, *(np.concatenate(parts) for parts in zip(train, val, strict=True))).predict(test)


def measure(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy and balanced accuracy."""
    return {"accuracy": accuracy(labels, predicted), "balanced accuracy": balanced_accuracy(labels, predicted)}


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A table with a line for each way."""
    table = Table("", *next(iter(rows.values())), title=title)
    for name, values in rows.items():
        table.add_row(name, *(f"{v:.1%}" for v in values.values()))
    CONSOLE.print(table)


def judge(probe: float, tuned: Sequence[float]) -> None:
    """Say whether the tuned models beat the probe in the mean; exit code 1 where they do not."""
    mean = float(np.mean(tuned))
    each = ", ".join(f"{t:.1%}" for t in tuned)
    CONSOLE.print(f"Balanced accuracy: linear probe {probe:.1%}, fine-tuned {mean:.1%} (mean of {each}).")
    if mean <= probe:
        sys.exit(f"The tuned model does not beat the linear probe ({mean - probe:+.1%} balanced accuracy).")
