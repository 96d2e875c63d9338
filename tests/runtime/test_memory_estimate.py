"""The memory of a session: parts, what they grow with, and a process that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import onnxft
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.memory import peak_resident_bytes, size_of
from onnxft.runtime.memory_estimate import (
    ACTIVATIONS,
    LIBRARY_BYTES,
    NODE_BYTES,
    WRITING,
    MemoryEstimate,
    MemoryModel,
    Use,
    why_no_estimate,
)
from onnxft.runtime.sizes import combined

MLP = 4 * (7 * 11 + 11 + 11 * 6 + 6 + 6 * 5 + 5)
"""Bytes of the parameters that are trained."""
MEASURED = """
import json, sys
from pathlib import Path
from onnxft.manifest_file import read_manifest
from onnxft.runtime.memory_estimate import MemoryModel, base_bytes
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession

place, rows, base = Path(sys.argv[1]), int(sys.argv[2]), base_bytes()
manifest = read_manifest(place)
estimate = MemoryModel(place, manifest, base).estimate([{"batch": rows}])
session, batch = TrainSession(place, threads=1, batch_size=rows), random_batch(manifest, rows, 0)
for _ in range(3):
    session.step(batch, lr=0.01)
assert "torch" not in sys.modules and "onnx" not in sys.modules
print(json.dumps([estimate.total - base, session.peak_bytes - base]))
"""


def model(place: Path, base: int = 0) -> tuple[MemoryModel, Manifest]:
    manifest = read_manifest(place)
    return MemoryModel(place, manifest, base), manifest


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (Use(), {"new parameters and state": MLP}),
        (Use(accumulates=True), {"gradients": MLP}),
        (Use(accumulates=True, clips=True), {"gradients": 2 * MLP}),
        (Use(averages=True, evaluates=True), {"new parameters and state": MLP, "averages": MLP}),
        (Use(saves=True), {"new parameters and state": MLP, WRITING: 2 * MLP}),
    ],
)
def test_the_tensors_that_live_between_steps(use: Use, expected: dict[str, int], exported: Callable[..., Path]) -> None:
    estimate = model(exported("mlp"), 1_000_000)[0].estimate([{"batch": 16}], use)
    parts = dict(estimate.parts)
    assert parts.pop("interpreter and libraries") == 1_000_000 + LIBRARY_BYTES
    for name in ("open graphs", "frozen weights and constants", "batches", ACTIVATIONS):
        assert parts.pop(name) > 0
    assert parts == {"trained parameters": MLP, "optimizer state": 2 * MLP, **expected}
    assert sum(estimate.parts.values()) == estimate.total
    assert estimate.guessed == 0


def test_clipping_takes_memory_of_its_own(exported: Callable[..., Path]) -> None:
    """A graph more, in which all gradients lie beside the clipped ones until their norm is known, and their buffers."""
    made, _ = model(exported("mlp"))
    plain, clipped = (
        made.estimate([{"batch": 1}], Use(accumulates=True, clips=clips)).parts for clips in (False, True)
    )
    assert clipped["open graphs"] > plain["open graphs"]
    assert clipped[ACTIVATIONS] > plain[ACTIVATIONS]
    assert clipped["gradients"] == 2 * plain["gradients"] == 2 * MLP


def test_activations_grow_with_the_batch_and_tensors_do_not(exported: Callable[..., Path]) -> None:
    made, _ = model(exported("convnet"))
    small, large = (made.estimate([{"batch": rows}]).parts for rows in (16, 256))
    # Of each of four doublings, in the mean: the arena grows in steps, and some values are sums over the batch.
    assert 1.8 < (large[ACTIVATIONS] / small[ACTIVATIONS]) ** (1 / 4) < 2.3
    assert large["batches"] == 16 * small["batches"]
    same = ("trained parameters", "optimizer state", "new parameters and state", "open graphs")
    assert {name: large[name] for name in same} == {name: small[name] for name in same}


def test_batches_that_are_read_ahead_count(exported: Callable[..., Path]) -> None:
    made, _ = model(exported("mlp"))
    none, three = (made.estimate([{"batch": 16}], Use(read_ahead=n)).parts["batches"] for n in (0, 3))
    assert three == none // 2 * 5


def test_each_graph_that_opens_counts(exported: Callable[..., Path]) -> None:
    made, _ = model(exported("mlp"))
    opened = [
        made.estimate([{"batch": 16}], use).parts["open graphs"]
        for use in (Use(), Use(evaluates=True), Use(accumulates=True), Use(accumulates=True, evaluates=True))
    ]
    assert opened[0] % NODE_BYTES == 0
    assert opened == sorted(set(opened))
    assert opened[1] - opened[0] == opened[3] - opened[2]


@pytest.mark.filterwarnings("ignore")
def test_recomputation_takes_fewer_activations_and_more_operators(tmp_path: Path) -> None:
    models = pytest.importorskip("models", reason="torch, of which the models are, is not installed here")
    made, _ = model(onnxft.export(*models.deep(), tmp_path / "deep", recompute=True))
    kept, again = (made.estimate([{"batch": 24}], Use(recompute=recompute)).parts for recompute in (False, True))
    assert again.pop(ACTIVATIONS) < 0.6 * kept.pop(ACTIVATIONS)
    assert again.pop("open graphs") > kept.pop("open graphs")
    assert again == kept


def test_sizes_of_a_dimension_share_an_arena(exported: Callable[..., Path]) -> None:
    made, manifest = model(exported("mlp"))
    one, both = (made.estimate(combined(manifest, rows, {})) for rows in (16, 64))
    together = made.estimate([{"batch": 64}, {"batch": 16}])
    assert together.sizes == {"batch": 64}
    assert together.parts["open graphs"] == one.parts["open graphs"] + both.parts["open graphs"]
    activations = [e.parts[ACTIVATIONS] for e in (one, both, together)]
    assert activations[1] <= activations[2] < activations[0] + activations[1]


def test_other_providers_have_no_estimate(exported: Callable[..., Path]) -> None:
    _, manifest = model(exported("mlp"))
    assert why_no_estimate(manifest, "cpu") == ""
    assert "'openvino' lays out memory in its own way" in why_no_estimate(manifest, "openvino")


def test_a_line_names_the_largest_parts() -> None:
    estimate = MemoryEstimate({"a": 1_000_000, "b": 4_000_000, "c": 2_000_000, "d": 3_000_000}, {"batch": 3})
    assert estimate.line == "about 10.0 MB (b 4.0 MB, d 3.0 MB, c 2.0 MB, ...)"
    assert estimate.with_part("e", 5).total == 10_000_005


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1.5GiB", 1_610_612_736), ("2 kB", 2_000), (3, 3 * 2**20), ("3", 3 * 2**20), ("0", 0),
     ("7b", 7)],
)  # fmt: skip
def test_a_size_is_read(text: int | str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", -1, "1 TB", "1,5GB", "1e3", "nan"])
def test_what_is_no_size_is_refused(text: int | str) -> None:
    with pytest.raises(ConfigError, match=r"memory_budget is .*, it must be a size at least 0: 512MB"):
        size_of(text, "memory_budget")


@pytest.mark.skipif(peak_resident_bytes() is None or sys.platform != "linux", reason="only Linux tells it so")
def test_an_estimate_has_the_order_of_what_a_process_takes(digits_artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(digits_artifact), "512"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    estimated, measured = json.loads(done.stdout)
    assert 0.6 < estimated / measured < 1.6, (estimated, measured)
