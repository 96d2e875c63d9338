"""Which nodes a measured step runs, and where."""

from __future__ import annotations

import pytest

from onnxft.benchmark.config import Scenario
from onnxft.benchmark.session_side import step_nodes
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
