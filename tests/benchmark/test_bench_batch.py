from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onnxft.errors import ArtifactError
from onnxft.manifest import BATCH, GraphFile, Manifest, Port
from onnxft.runtime.random_batch import draws_random_numbers, random_batch

MakeManifest = Callable[..., Manifest]


def test_batch_has_the_shapes_types_and_ranges_of_the_ports(fake_manifest: MakeManifest) -> None:
    batch = random_batch(fake_manifest(), batch_size=400, seed=3)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "image": ((400, 3, 5, 7), "float32"),
        "mask": ((400, 11), "int64"),
        "labels": ((400,), "int64"),
    }
    assert set(np.unique(batch["labels"])) == {0, 1, 2, 3}
    assert set(np.unique(batch["mask"])) == {0, 1}
    assert abs(float(batch["image"].mean())) < 0.05
    assert float(batch["image"].std()) == pytest.approx(1, abs=0.05)


def test_batch_depends_on_the_seed_alone(fake_manifest: MakeManifest) -> None:
    first, again, other = (random_batch(fake_manifest(), 2, seed) for seed in (5, 5, 6))
    assert all((first[name] == again[name]).all() for name in first)
    assert not (first["image"] == other["image"]).all()


def test_inputs_are_those_of_the_trunk_where_the_model_is_divided(fake_manifest: MakeManifest) -> None:
    whole = fake_manifest()
    assert [p.name for p in whole.inputs] == ["image", "mask"]
    trunk = GraphFile("trunk.onnx", (Port("tokens", "input", "int64", (BATCH, 7)),))
    divided = replace(whole, graphs={**whole.graphs, "trunk": trunk})
    assert set(random_batch(divided, 2, 0)) == {"tokens", "labels"}
    with pytest.raises(ArtifactError, match="has no 'eval' graph"):
        random_batch(replace(whole, graphs={}), 2, 0)


def test_other_dimensions_take_the_size_of_the_manifest(fake_manifest: MakeManifest) -> None:
    ports = (Port("tokens", "input", "int64", (BATCH, "sequence")), Port("labels", "label", "int64", (BATCH,)))
    opened = replace(fake_manifest(), graphs={"eval": GraphFile("eval.onnx", ports)}, dimensions={"sequence": 5})
    assert random_batch(opened, 2, 0)["tokens"].shape == (2, 5)


def test_random_ports_of_the_training_graph_are_seen(fake_manifest: MakeManifest) -> None:
    assert draws_random_numbers(fake_manifest(random=True))
    assert not draws_random_numbers(fake_manifest())
