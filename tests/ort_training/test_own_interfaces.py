"""The files of an artifact, trained by onnxruntime-training's own interfaces without onnxft, against torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ort_training_models import BATCH_SIZE, CASES, choose, make_batches, make_forward, torch_reference

from onnxft.generators.ort_training.generate import generate
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.ort_training_environment import PYTHON_VARIABLE

pytestmark = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set")

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Run:
    case: str
    standalone: bool
    max_norm: float | None = None

    @property
    def name(self) -> str:
        form = "standalone" if self.standalone else "default"
        return f"{self.case}, {form}{', clipped' if self.max_norm else ''}"


RUNS = [
    Run("convnet_affine", standalone=True),
    Run("convnet_affine", standalone=False),
    Run("layer_norm", standalone=True),
    Run("mlp_mse", standalone=True),
    Run("mlp_mse", standalone=False),
    Run("mlp_decay", standalone=False),
    Run("mlp_sgd", standalone=True, max_norm=0.25),
    Run("mlp_adamw", standalone=False, max_norm=0.25),
]
Results = Callable[[Run], tuple[Manifest, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Manifest and results of a run; all in one process."""
    root = tmp_path_factory.mktemp("own")
    places = {run: root / f"{i}" for i, run in enumerate(RUNS)}
    for run, directory in places.items():
        case = CASES[run.case]
        options = {**case.optimizer.options, **({"max_norm": run.max_norm} if run.max_norm else {})}
        generate(
            make_forward(case), choose(*case.trainable), case.loss, replace(case.optimizer, options=options), directory,
            batch_size=BATCH_SIZE, standalone=run.standalone,
        )  # fmt: skip
        more = {} if run.standalone else {"sample_weights": np.ones(BATCH_SIZE), "normalizer": np.array(0)}
        batches = {
            f"{step}/{name}": a.astype(np.float32) if name in more else a
            for step, batch in enumerate(make_batches(case))
            for name, a in {**batch, **more}.items()
        }
        np.savez(directory / "batches.npz", lr=np.array(case.lr), **batches)
    script = Path(__file__).with_name("own_interfaces.py")
    subprocess.run([os.environ[PYTHON_VARIABLE], "-I", str(script), str(root)], check=True)

    def of(run: Run) -> tuple[Manifest, dict[str, np.ndarray]]:
        with np.load(places[run] / "results.npz") as stored:
            return read_manifest(places[run]), dict(stored)

    return of


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_training_equals_torch(run: Run, results: Results) -> None:
    _, found = results(run)
    expected = torch_reference(CASES[run.case], run.max_norm)
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=TOLERANCE)
    for name in CASES[run.case].trainable:
        np.testing.assert_allclose(found[f"final/{name}"], expected[f"final/{name}"], rtol=1e-3, atol=TOLERANCE)
    assert found["losses"][-1] != found["losses"][0]


@pytest.mark.parametrize("run", [run for run in RUNS if run.max_norm], ids=lambda run: run.name)
def test_the_norm_that_is_baked_in_clips(run: Run, results: Results) -> None:
    _, found = results(run)
    unclipped = torch_reference(CASES[run.case])["losses"]
    assert np.abs(found["losses"] - unclipped).max() > 100 * TOLERANCE * unclipped.max()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_evaluation_and_exported_model_agree(run: Run, results: Results) -> None:
    manifest, found = results(run)
    ports = manifest.graph("ort_eval")
    assert {name.removeprefix("eval/") for name in found if name.startswith("eval/")} == {p.name for p in ports.outputs}
    np.testing.assert_allclose(found["exported/logits"], found["eval/logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_ports_and_vector_have_the_order_of_the_manifest(run: Run, results: Results) -> None:
    manifest, found = results(run)
    assert [p.name for p in manifest.graph("ort_training").inputs] == list(found["inputs"])
    parts = [found[f"final/{p.name}"].reshape(-1) for p in manifest.parameters]
    np.testing.assert_array_equal(found["vector"], np.concatenate(parts))


@pytest.mark.parametrize("way", ["vector", "nominal checkpoint", "saved checkpoint"])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_parameters_survive_each_way(run: Run, way: str, results: Results) -> None:
    _, found = results(run)
    assert found[f"from the {way}"] == found["eval/loss"]
