"""The benchmark on a real artifact: a small convnet on ONNX Runtime's CPU provider against torch."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxft
from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.report import Report
from onnxft.benchmark.run import bench
from onnxft.manifest_file import read_manifest

pytest.importorskip("torch", reason="the baseline needs torch")


@pytest.fixture(scope="module")
def report(digits_artifact: Path, digits_source: str) -> Report:
    config = BenchConfig(
        providers=("cpu", "directml"),
        baselines=("torch",),
        source=digits_source,
        threads=1,
        min_seconds=0.1,
        profile=True,
    )
    return bench(digits_artifact, config)


def test_the_provider_computes_what_torch_computes(report: Report) -> None:
    torch, cpu, _ = report.rows
    assert torch.reason is None
    assert cpu.reason is None
    assert cpu.numerics is not None
    assert cpu.numerics.reference == "torch"
    assert cpu.numerics.loss_difference is not None
    assert cpu.numerics.loss_difference < 1e-5
    assert cpu.numerics.gradient_difference is not None
    assert cpu.numerics.gradient_difference < 1e-4


def test_the_row_says_how_fast_where_and_with_how_much_memory(report: Report) -> None:
    cpu = report.rows[1]
    m = cpu.measurement
    assert m is not None
    assert (m.provider_requested, m.provider_obtained, m.fallback_nodes) == ("cpu", "cpu", 0)
    assert sum(m.nodes.values()) > 5
    assert len(m.step_seconds) >= 12
    assert min(m.step_seconds) > 0
    assert cpu.ratio is not None
    assert cpu.ratio.value > 0
    assert {"onnxruntime", "numpy", "python", "onnxft"} <= set(m.versions)
    torch = report.rows[0].measurement
    assert torch is not None
    assert m.peak_rss_bytes is not None
    assert torch.peak_rss_bytes is not None
    # The provider's process imports no torch, which alone takes more than the whole session.
    assert m.peak_rss_bytes < torch.peak_rss_bytes


def test_every_side_has_its_peaks_its_floor_and_its_operators(report: Report, digits_artifact: Path) -> None:
    work = read_manifest(digits_artifact).work
    assert work is not None
    assert (report.work.flops, report.work.bytes) == (work.flops, work.bytes)
    for row in report.rows[:2]:
        m = row.measurement
        assert m is not None
        assert m.peaks is not None
        assert row.floor is not None
        assert row.summary is not None
        assert row.floor.seconds == pytest.approx(work.flops / m.peaks.flops + work.bytes / m.peaks.bandwidth)
        assert row.floor.distance == pytest.approx(row.summary.p50 / row.floor.seconds)
        assert {t.provider for t in m.operators} == {row.side.name}


def test_a_provider_that_is_not_there_has_its_reason(report: Report) -> None:
    row = report.rows[2]
    assert row.reason is not None
    assert "is not available" in row.reason
    assert "directml" in row.reason


def test_steps_on_kept_features_are_compared_with_whole_ones_of_torch(tmp_path: Path, digits_source: str) -> None:
    artifact = onnxft.export(
        digits_source, directory=tmp_path / "head", input_names=["image"], trainable=["6.*"], batch_size=6
    )
    config = BenchConfig(
        baselines=("torch",), source=digits_source, scenario="cached", threads=1, min_steps=2, min_seconds=0
    )
    report = bench(artifact, config)
    torch, cpu = report.rows
    manifest = read_manifest(artifact)
    assert manifest.work is not None
    assert manifest.work_from_features is not None
    assert torch.measurement is not None
    assert torch.measurement.features is None
    m = cpu.measurement
    assert m is not None
    assert m.features is not None
    assert m.features.bytes == 4 * 8 * 5 * 5
    assert m.features.seconds > 0
    assert cpu.numerics is not None
    assert cpu.numerics.gradient_difference is not None
    assert cpu.numerics.gradient_difference < 1e-4
    assert report.work.flops == manifest.work_from_features.flops
    for row, work in ((torch, manifest.work), (cpu, manifest.work_from_features)):
        assert row.floor is not None
        assert row.measurement is not None
        assert row.measurement.peaks is not None
        peaks = row.measurement.peaks
        assert row.floor.seconds == pytest.approx(work.flops / peaks.flops + work.bytes / peaks.bandwidth)


def test_an_artifact_without_features_fails_with_the_reason(digits_artifact: Path) -> None:
    (row,) = bench(digits_artifact, BenchConfig(scenario="cached", threads=1, min_steps=2, min_seconds=0)).rows
    assert row.reason is not None
    assert "ConfigError: the artifact 'digits' has no features to keep" in row.reason
    assert "scenario 'train'" in row.reason
