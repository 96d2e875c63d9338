"""What the side of a provider does besides measuring: which nodes a step runs and where, what kept features take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxft.benchmark.config import Scenario
from onnxft.benchmark.exchange import KeptFeatures
from onnxft.benchmark.session_side import keep_features, step_nodes
from onnxft.errors import ConfigError
from onnxft.manifest import BATCH, GraphFile, Manifest, Port
from onnxft.runtime.engine import Placement

NODES = {
    "trunk": {"openvino": 3, "cpu": 1},
    "train": {"openvino": 5},
    "gradients": {"openvino": 7, "cpu": 2},
    "update": {"cpu": 4},
    "eval": {"openvino": 2},
}
FALLBACK = {"trunk": {"cpu": ("a (Add)",)}, "gradients": {"cpu": ("b (Mul)", "c (Mul)")}}


@pytest.mark.parametrize(
    ("opened", "scenario", "nodes", "fallback"),
    [
        (("train",), "train", {"openvino": 5}, {}),
        (("trunk", "train"), "train", {"openvino": 8, "cpu": 1}, {"cpu": ("a (Add)",)}),
        (
            ("trunk", "gradients", "update"), "train", {"openvino": 10, "cpu": 7},
            {"cpu": ("a (Add)", "b (Mul)", "c (Mul)")},
        ),
        (("trunk", "train"), "cached", {"openvino": 5}, {}),
        (
            ("trunk", "gradients", "update"), "cached", {"openvino": 7, "cpu": 6}, {"cpu": ("b (Mul)", "c (Mul)")},
        ),
        (("train", "eval"), "inference", {"openvino": 2}, {}),
        (("trunk", "train", "eval"), "inference", {"openvino": 5, "cpu": 1}, {"cpu": ("a (Add)",)}),
        ((), "train", {}, {}),
    ],
)  # fmt: skip
def test_all_graphs_of_a_step_count(
    opened: tuple[str, ...], scenario: Scenario, nodes: dict[str, int], fallback: dict[str, tuple[str, ...]]
) -> None:
    placement = Placement(
        "openvino", "openvino", {r: NODES[r] for r in opened}, {r: f for r, f in FALLBACK.items() if r in opened}
    )
    assert step_nodes(placement, scenario) == (nodes, fallback)


def session_of(manifest: Manifest, features: dict[str, np.ndarray] | None = None) -> Any:
    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(inputs) == {"image", "mask"}
        assert features is not None
        return features

    return SimpleNamespace(manifest=manifest, features=compute)


def test_features_take_a_time_and_bytes_of_each_row(fake_manifest: Callable[..., Manifest]) -> None:
    whole = fake_manifest()
    ports = tuple(Port(f"feature.{n}", "feature", "float32", (BATCH, d)) for n, d in (("a", 5), ("mask", 11)))
    labels = whole.graphs["eval"].named("label")
    graphs = {"trunk": GraphFile("trunk.onnx", whole.inputs, ports), "eval": GraphFile("eval.onnx", (*ports, *labels))}
    session = session_of(
        replace(whole, graphs={**whole.graphs, **graphs}),
        {"feature.a": np.ones((4, 5), np.float32), "feature.mask": np.ones((4, 11), np.int64)},
    )
    batch = {"image": np.zeros((4, 3, 5, 7)), "mask": np.zeros((4, 11)), "labels": np.arange(4)}
    # Five calls of 2, 8, 4, 400 and 6 seconds, each with nothing before the next.
    ticks = accumulate((0, 2, 0, 8, 0, 4, 0, 400, 0, 6))
    found, kept = keep_features(session, batch, lambda: next(ticks))
    assert set(found) == {"feature.a", "feature.mask", "labels"}
    assert kept == KeptFeatures(seconds=6 / 4, bytes=5 * 4 + 11 * 8)
    assert next(ticks, None) is None


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ("", "'fake' has no features to keep: nothing that is frozen and multiplies lies before all that is trained."),
        ("the frozen part draws random numbers first.", "no features to keep: the frozen part draws random numbers"),
    ],
)
def test_an_artifact_without_a_trunk_has_the_reason(
    whole: str, words: str, fake_manifest: Callable[..., Manifest]
) -> None:
    with pytest.raises(ConfigError) as caught:
        keep_features(session_of(replace(fake_manifest(), whole=whole)), {})
    assert words in str(caught.value)
    assert "Measure it with the scenario 'train'." in str(caught.value)
