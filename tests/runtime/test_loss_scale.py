"""float16 in a session: loss scaling, updates that are left out, and what a checkpoint keeps of them.

No provider here computes in float16, but the CPU provider runs such graphs, casting to float32 where it has no kernel:
so the table is told that it does. A scale of 2**26 overflows what the convolutions' gradients are cast to.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from onnxft.api import export
from onnxft.errors import ArtifactError, DivergedError, ProviderError
from onnxft.files import sha256
from onnxft.manifest_file import manifest_json, read_manifest
from onnxft.runtime import providers
from onnxft.runtime.execution import Execution
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.precision import graph_of
from onnxft.runtime.session import TrainSession

OVERFLOWS = LossScale(2.0**26)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(optimizer) -> the small convolutional network with graphs in float16 too."""
    made: dict[str, Path] = {}

    def make(optimizer: str = "adamw") -> Path:
        if optimizer not in made:
            made[optimizer] = export(
                *models.convnet(), tmp_path_factory.mktemp("half") / optimizer, optimizer=optimizer, batch_size=8,
                dropout=False, precision=["float16"],
            )  # fmt: skip
        return made[optimizer]

    return make


@pytest.fixture
def cpu_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(providers.PROVIDERS["cpu"], precisions=("float32", "float16"))
    monkeypatch.setitem(providers.PROVIDERS, "cpu", entry)


def batch_of(seed: int = 0, rows: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": 2 * rng.standard_normal((rows, 1, 24, 24)).astype(np.float32), "labels": rng.integers(0, 10, rows)
    }  # fmt: skip


def half_session(artifact: Path, scale: LossScale | None = None) -> TrainSession:
    session = TrainSession(artifact, precision="float16", threads=1)
    if scale is not None:
        session._engine.loss_scale = scale
    return session


# ----- the rule -----


def test_the_rule_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch gives the expected numbers")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2000)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    (parameter,) = optimizer.param_groups[0]["params"]
    found, skipped = LossScale(), 0
    for step in range(4200):
        finite = step not in (3, 4, 2500)
        scaler.scale(parameter.sum()).backward()
        parameter.grad.fill_(1.0 if finite else math.inf)
        scaler.step(optimizer)
        scaler.update()
        found, skipped = found.after(finite=finite), skipped + (not finite)
        assert (found.scale, found.good, found.skipped) == (scaler.get_scale(), scaler._get_growth_tracker(), skipped)
    assert found.skipped == 3


def test_a_scale_that_cannot_become_smaller_is_an_error() -> None:
    scale = LossScale()
    with pytest.raises(DivergedError, match="not finite in float16 at any loss scale"):
        for _ in range(100):
            scale = scale.after(finite=False)
    assert scale.scale == 2.0**-16


def test_the_largest_scale_stays() -> None:
    assert LossScale(2.0**100, 1999).after(finite=True) == LossScale(2.0**100)


# ----- in a session -----


@pytest.mark.usefixtures("cpu_in_float16")
def test_a_step_is_that_of_float32_and_the_sums_are_unscaled(half: Callable[..., Path]) -> None:
    batch = {**batch_of(), "sample_weights": np.linspace(0.1, 3, 8, dtype=np.float32)}
    found = {}
    for precision in ("float32", "float16"):
        with TrainSession(half("sgd"), precision=precision, threads=1) as session:
            gradients = session.gradients(batch)
            result = session.step(batch, lr=0.1)
            found[precision] = (gradients, session.parameters, result.loss, result.weight_sum, session.evaluate(batch))
            assert set(session.placement.nodes) == (
                {"train", "gradients", "eval"} if precision == "float32" else {"gradients", "update", "eval"}
            )
            assert session.placement.precision == precision
    (exact, after, loss, weight, scores), (gradients, moved, *rest, half_scores) = found["float32"], found["float16"]
    assert rest == [pytest.approx(loss, rel=1e-3), weight]
    assert half_scores.loss == pytest.approx(scores.loss, rel=1e-3)
    for name, g in exact.items():
        assert np.linalg.norm(gradients[name] - g) < 2e-2 * np.linalg.norm(g), name
        np.testing.assert_allclose(moved[name], after[name], atol=2e-3 * np.abs(g).max(), err_msg=name)
    assert any((gradients[name] != g).any() for name, g in exact.items()), "these are the gradients of float32"


@pytest.mark.usefixtures("cpu_in_float16")
def test_an_update_that_is_not_finite_is_left_out(half: Callable[..., Path]) -> None:
    with half_session(half(), OVERFLOWS) as session:
        start, state = session.parameters, session._engine.state()
        result = session.step(batch_of(), lr=0.1)
        assert math.isfinite(result.loss)
        assert result.weight_sum == 8
        assert session.loss_scale == LossScale(OVERFLOWS.scale / 2, 0, 1)
        assert session.step_count == 1  # schedules and masks go on
        assert all(np.array_equal(v, start[n]) for n, v in session.parameters.items())
        assert all(np.array_equal(v, state[n]) for n, v in session._engine.state().items())


@pytest.mark.usefixtures("cpu_in_float16")
def test_the_optimizer_does_not_count_what_was_left_out(half: Callable[..., Path]) -> None:
    """Adam's correction of its means after one skipped and one good update is that of the first."""
    ends = []
    for before in (0, 1):
        with half_session(half()) as session:
            for _ in range(before):
                session._engine.loss_scale = OVERFLOWS
                session.step(batch_of(), lr=0.1)
            session._engine.loss_scale = LossScale(skipped=session.loss_scale.skipped)
            session.step(batch_of(1), lr=0.1)
            ends.append(session.parameters)
            assert (session.step_count, session.loss_scale.skipped) == (before + 1, before)
    assert all(np.array_equal(ends[0][n], ends[1][n]) for n in ends[0])


@pytest.mark.usefixtures("cpu_in_float16")
@pytest.mark.parametrize("place", [0, 2])
def test_one_micro_batch_that_is_not_finite_leaves_the_update_out(place: int, half: Callable[..., Path]) -> None:
    """Wherever it stands: what is not finite stays so in the accumulators; the next update begins anew."""
    with half_session(half("sgd")) as session:
        start = session.parameters
        for i in range(3):
            batch = batch_of(i)
            weight = 2.0**10 if i == place else 1.0
            session.accumulate({**batch, "sample_weights": np.full(8, weight, np.float32)})
        session.update(lr=0.1)
        assert session.loss_scale.skipped == 1
        assert all(np.array_equal(v, start[n]) for n, v in session.parameters.items())
        session._engine.loss_scale = LossScale()
        session.step(batch_of(), lr=0.1)
        assert session.loss_scale.skipped == 0
        after = session.parameters
        assert all(np.isfinite(v).all() for v in after.values())
        assert any((v != start[n]).any() for n, v in after.items())


@pytest.mark.usefixtures("cpu_in_float16")
def test_gradients_find_a_scale_of_their_own(half: Callable[..., Path]) -> None:
    with half_session(half()) as session:
        expected = session.gradients(batch_of())
        session._engine.loss_scale = OVERFLOWS
        found = session.gradients(batch_of())
        assert session.loss_scale == OVERFLOWS
    for name, g in expected.items():
        assert np.linalg.norm(found[name] - g) < 1e-2 * np.linalg.norm(g), name


@pytest.mark.usefixtures("cpu_in_float16")
@pytest.mark.parametrize("then", ["float16", "float32"])
def test_resume_is_exact_with_updates_left_out(then: str, half: Callable[..., Path], tmp_path: Path) -> None:
    with half_session(half(), LossScale(2.0**22)) as session:
        for i in range(8):
            if i == 5:
                session.save_checkpoint(tmp_path / "checkpoint")
                kept = session.loss_scale
            session.step(batch_of(i), lr=1e-3)
        end, scale = session.parameters, session.loss_scale
    assert 0 < kept.skipped < 5
    with TrainSession(half(), precision=then, threads=1) as session:
        session.load_checkpoint(tmp_path / "checkpoint")
        assert session.loss_scale == kept
        for i in range(5, 8):
            session.step(batch_of(i), lr=1e-3)
        assert session.step_count == 8
        for name, value in session.parameters.items():
            if then == "float16":
                assert np.array_equal(value, end[name])
            else:  # Adam's steps of near-zero gradients may change sign; another count would change all by 1e-3
                assert np.median(np.abs(value - end[name])) < 1e-4, name
        assert session.loss_scale == (scale if then == "float16" else kept)


def test_a_checkpoint_without_a_scale_has_that_of_a_start(half: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(half(), threads=1) as session:
        session.step(batch_of(), lr=1e-3)
        session.save_checkpoint(tmp_path / "c")
        record = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
        del record["loss_scale"]
        (tmp_path / "c" / "checkpoint.json").write_text(json.dumps(record))
        session.load_checkpoint(tmp_path / "c")
        assert session.loss_scale == LossScale()


@pytest.mark.parametrize(
    "scale",
    [{"scale": 3.0}, {"scale": 0.0}, {"scale": 2.0**101}, {"scale": 2.0, "good": 2000}, {"scale": 2.0, "skipped": 2}],
)
def test_a_scale_that_no_run_has_is_damage(scale: dict[str, float], half: Callable[..., Path], tmp_path: Path) -> None:
    with TrainSession(half(), threads=1) as session:
        session.step(batch_of(), lr=1e-3)
        session.save_checkpoint(tmp_path / "c")
        record = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
        (tmp_path / "c" / "checkpoint.json").write_text(json.dumps({**record, "loss_scale": scale}))
        with pytest.raises(ArtifactError, match="no run has the loss scale"):
            session.load_checkpoint(tmp_path / "c")


@pytest.mark.usefixtures("cpu_in_float16")
def test_the_model_learns_as_in_float32(half: Callable[..., Path]) -> None:
    losses = {}
    for precision in ("float32", "float16"):
        with TrainSession(half(), precision=precision, threads=1) as session:
            losses[precision] = [session.step(batch_of(), lr=3e-3).loss for _ in range(40)]
    assert losses["float16"][-1] < 0.3 * losses["float16"][0]
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=0.05)


@pytest.mark.usefixtures("cpu_in_float16")
def test_running_statistics_move_where_an_update_is_left_out(tmp_path: Path) -> None:
    """As torch's do: they are of the forward pass, which is not scaled."""
    artifact = export(
        *models.normed(), tmp_path / "normed", batch_size=4, train_batchnorm=["bn1", "bn3"], precision=["float16"],
        dropout=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((4, 2, 9, 8)).astype(np.float32), "labels": rng.integers(0, 4, 4)}
    found = {}
    for precision, scale in (("float32", LossScale()), ("float16", LossScale(2.0**40))):
        with TrainSession(artifact, precision=precision, threads=1) as session:
            session._engine.loss_scale = scale
            start = session.buffers
            session.step(batch, lr=0.1)
            found[precision] = session.buffers
            assert session.loss_scale.skipped == (precision == "float16")
    for name, value in found["float32"].items():
        assert (value != start[name]).any()
        np.testing.assert_allclose(found["float16"][name], value, rtol=2e-3, atol=2e-3, err_msg=name)


# ----- what is asked for -----


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_runs_the_graphs_of_its_precision(provider: str, half: Callable[..., Path]) -> None:
    with TrainSession(half(), threads=1) as session:
        manifest = session.manifest
    for role in ("gradients", "eval"):
        assert graph_of(role, manifest, Execution(provider, "float16")).file == f"{role}.float16.onnx"
        assert graph_of(role, manifest, Execution(provider)).file == f"{role}.onnx"
        with pytest.raises(ArtifactError, match=f"no '{role}' graph in bfloat16. Export it again with --precision bf"):
            graph_of(role, manifest, Execution(provider, "bfloat16"))
    for role in ("update", "average"):
        assert graph_of(role, manifest, Execution(provider, "float16")).file == f"{role}.onnx"
    assert graph_of("gradients", manifest, Execution("openvino", "bfloat16")).file == "batch_gradients.onnx"
    options = providers.PROVIDERS[provider].options(Execution(provider, "float16"))
    assert options.get("trt_fp16_enable", "0") == options.get("trt_bf16_enable", "0") == "0"


def test_the_cpu_does_not_compute_in_float16(half: Callable[..., Path]) -> None:
    with pytest.raises(ProviderError, match="'cpu' does not compute in float16; it can do float32"):
        TrainSession(half(), precision="float16")


def test_graphs_in_float16_are_checked_before_the_runtime_sees_them(half: Callable[..., Path], tmp_path: Path) -> None:
    artifact = shutil.copytree(half(), tmp_path / "a")
    file = artifact / "eval.float16.onnx"
    model = onnx.load(file, load_external_data=False)
    (place, *_) = (e for t in model.graph.initializer for e in t.external_data if e.key == "location")
    place.value = "../elsewhere.safetensors"
    file.write_bytes(model.SerializeToString())
    manifest = read_manifest(artifact)
    files = {**manifest.files, file.name: sha256(file)}
    (artifact / "manifest.json").write_bytes(manifest_json(replace(manifest, files=files)))
    with pytest.raises(ArtifactError, match="elsewhere"):
        TrainSession(artifact)
