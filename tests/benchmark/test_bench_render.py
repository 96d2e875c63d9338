from __future__ import annotations

import io

from rich.console import Console

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Measurement
from onnxft.benchmark.markdown import render as markdown
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.report import Device, Report, Row, Work
from onnxft.benchmark.statistics import Ratio, summarize
from onnxft.benchmark.table import tables
from onnxft.benchmark.terminal import render


def measured(name: str, seconds: tuple[float, ...], peak: int | None) -> Measurement:
    return Measurement(
        provider_requested=name,
        provider_obtained=name,
        nodes={name: 30, "cpu": 2} if name != "torch" else {},
        fallback_nodes=2 if name != "torch" else None,
        versions={"runtime": "1.32"},
        build_seconds=0.5,
        first_step_seconds=0.25,
        warmup_seconds=(),
        step_seconds=seconds,
        peak_rss_bytes=peak,
        loss=1.5,
    )


def report() -> Report:
    slow, fast = (0.02, 0.03), (0.004, 0.006)
    torch, openvino = Side("torch", "baseline"), Side("openvino", "provider")
    return Report(
        work=Work("artifacts/a|b", "native", "float32", "adamw", 16, 1_000, 9_000),
        config=BenchConfig(providers=("openvino", "cuda"), baselines=("torch",), source="m:f"),
        device=Device("Linux", "Some CPU", 4, 2),
        started="2026-11-24T08:00:00+00:00",
        onnxft="0.1.0",
        reference="torch",
        rows=(
            Row(torch, measurement=measured("torch", slow, 200_000_000), summary=summarize(slow, 16)),
            Row(
                openvino,
                measurement=measured("openvino", fast, None),
                summary=summarize(fast, 16),
                ratio=Ratio(5.0, 1.5),
                numerics=Numerics("torch", 1.25e-7, 3.5e-5, "net.0.weight"),
            ),
            Row(Side("cuda", "provider"), reason="ProviderError: no [bold]GPU[/bold] <here>", log="out/bench.cuda.log"),
        ),
    )


def test_there_is_one_line_per_side_and_as_many_cells_as_columns() -> None:
    for table in tables(report()):
        assert [line[0] for line in table.lines] == ["torch", "openvino", "cuda"]
        assert {len(line) for line in table.lines} == {len(table.columns)}


def test_cells() -> None:
    speed, cost, agreement = tables(report())
    cell = {line[0]: dict(zip(speed.columns, line, strict=True)) for line in speed.lines}
    assert cell["torch"]["vs torch"] == "1 (reference)"
    assert cell["openvino"]["vs torch"] == "5.00 ± 1.50x"
    assert cell["openvino"]["p50"] == "5.00 ms"
    assert cell["openvino"]["samples/s"] == "3,200"
    assert cell["openvino"]["mean ± std"] == "5.00 ms ± 28 %"
    assert cell["cuda"]["p50"] == "failed"
    cell = {line[0]: dict(zip(cost.columns, line, strict=True)) for line in cost.lines}
    assert (cell["torch"]["peak RSS"], cell["openvino"]["peak RSS"]) == ("200 MB", "-")
    assert cell["openvino"]["nodes"] == "2 cpu, 30 openvino"
    assert cell["openvino"]["fell back"] == "2"
    assert cell["torch"]["fell back"] == "-"
    cell = {line[0]: dict(zip(agreement.columns, line, strict=True)) for line in agreement.lines}
    assert (cell["openvino"]["Δ loss"], cell["openvino"]["max Δ gradient"]) == ("1.2e-07", "3.5e-05")
    assert cell["openvino"]["worst parameter"] == "net.0.weight"
    assert cell["torch"]["compared with"] == "-"
    assert cell["cuda"]["Δ loss"] == "failed"


def test_terminal_shows_names_as_they_are() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(render(report()))
    text = out.getvalue()
    assert "1,000 of 10,000 parameters trained (10.0 %), batch 16" in text
    assert "cuda failed: ProviderError: no [bold]GPU[/bold] <here> (log: out/bench.cuda.log)" in text
    assert "5.00 ± 1.50x" in text


def test_markdown_escapes_names_and_messages() -> None:
    text = markdown(report())
    assert r"artifacts/a\|b" in text
    assert r"no \[bold\]GPU\[/bold\] \<here\>" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3 * 5
    assert {line.replace(r"\|", "").count("|") for line in table[:5]} == {8}
    assert table[1] == "| --- " + "| ---: " * 6 + "|"
    assert report().to_markdown() == text
