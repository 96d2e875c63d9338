from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from reports import (
    HOSTILE,
    REASON,
    REPORTS,
    SECONDS,
    all_failed,
    cached,
    inference,
    named,
    one_failed,
    report,
    row,
    sweep,
    two,
    with_gpu,
)
from rich.cells import cell_len
from rich.console import Console

from onnxft.benchmark import terminal
from onnxft.benchmark.html import render as html
from onnxft.benchmark.markdown import escape
from onnxft.benchmark.markdown import render as markdown
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.operators import operator_tables
from onnxft.benchmark.report import Report
from onnxft.benchmark.sentences import header, notes, verdict
from onnxft.benchmark.statistics import Ratio, summarize
from onnxft.benchmark.table import Table, detail_table, main_table, matrices
from onnxft.cli.bench import bench
from onnxft.errors import ConfigError

every_report = pytest.mark.parametrize("name", REPORTS)


def cells(table: Table) -> dict[str, dict[str, str]]:
    """{side: {column: cell}}"""
    names = [f"{c.name} {c.unit}".strip() for c in table.columns]
    return {line.cells[0]: dict(zip(names, line.cells, strict=True)) for line in table.lines}


def printed(given: Report, width: int = 100, **options: bool) -> str:
    out = io.StringIO()
    Console(file=out, width=width, legacy_windows=False, **options).print(terminal.render(given))  # type: ignore[arg-type]
    return out.getvalue()


@every_report
def test_there_is_one_line_per_row_and_no_column_is_empty(name: str) -> None:
    given = REPORTS[name]()
    for table in (main_table(given), detail_table(given)):
        assert [line.cells[0] for line in table.lines] == [r.side.name for r in given.rows]
        assert [line.failed for line in table.lines] == [r.reason is not None for r in given.rows]
        assert {len(line.cells) for line in table.lines} == {len(table.columns)}
        for i in range(len(table.columns)):
            assert any(line.cells[i] != "-" for line in table.lines), table.columns[i]


def test_cells_of_the_main_table() -> None:
    cell = cells(main_table(one_failed()))
    assert cell["torch"] == {
        "side": "torch", "p50 ms": "25.2", "p95 ms": "26.2", "p99 ms": "26.3", "samples per s": "631",
        "speed × torch": "1.00", "first step": "275 ms", "memory MB": "202", "× floor": "-", "max Δ gradient": "-",
        "status": "ok",
    }  # fmt: skip
    assert cell["openvino"] | {"side": ""} == {
        "side": "", "p50 ms": "22.2", "p95 ms": "23.1", "p99 ms": "23.2", "samples per s": "717",
        "speed × torch": "1.14 ± 0.05", "first step": "272 ms", "memory MB": "206", "× floor": "1.50",
        "max Δ gradient": "1.4e-04", "status": "4 on cpu",
    }  # fmt: skip
    assert set(cell["cuda"].values()) == {"cuda", "-", "failed"}
    assert cell["cuda"]["status"] == "failed"
    assert [c.name for c in main_table(all_failed()).columns] == ["side", "status"]


def test_details() -> None:
    cell = cells(detail_table(one_failed()))["openvino:bfloat16"]
    assert cell["mean ± std ms"] == "11.2 ± 3 %"
    assert cell["nodes"] == "4 cpu, 30 openvino"
    assert (cell["precision"], cell["runs on"], cell["floor"]) == ("bfloat16", "openvino", "7.40 ms")
    assert (cell["Δ loss"], cell["worst gradient"], cell["compared with"]) == ("6.2e-07", "net.0.weight", "torch")


def test_the_best_of_a_column_is_marked_within_its_point() -> None:
    table = main_table(one_failed())
    best = {(line.cells[0], table.columns[i].name) for line in table.lines for i in line.best}
    bfloat16 = {("openvino:bfloat16", name) for name in ("p50", "p95", "p99", "samples", "speed", "first")}
    # Every floor is equally far.
    assert best == bfloat16 | {("torch", "memory")} | {(s, "×") for s in ("cpu", "openvino", "openvino:bfloat16")}
    groups = main_table(sweep()).groups
    assert list(groups)[:3] == ["batch 8, 1 thread", "batch 8, 2 threads", "batch 16, 1 thread"]
    for lines in groups.values():
        assert [line.cells[0] for line in lines if 1 in line.best] == ["openvino:bfloat16"]
    assert not any(line.best for line in main_table(report([row("cpu")], "cpu")).lines)


@pytest.mark.parametrize(("seconds", "unit", "text"), [(5e-5, "µs", "50.0"), (0.05, "ms", "50.0"), (5.0, "s", "5.00")])
def test_all_times_of_a_table_have_one_unit(seconds: float, unit: str, text: str) -> None:
    given = report([replace(row("cpu"), summary=summarize([seconds, seconds], 16))], "cpu")
    assert cells(main_table(given))["cpu"][f"p50 {unit}"] == text


def test_gpu_memory_and_the_loss_of_inference_have_columns_where_they_exist() -> None:
    assert cells(main_table(with_gpu()))["cpu"]["GPU MB"] == "1,234"
    assert cells(main_table(inference()))["cpu"]["Δ loss"] == "2.5e-04"
    assert "first batch" in cells(main_table(inference()))["cpu"]


@pytest.mark.parametrize(("given", "word"), [(two(), "gradient"), (inference(), "output")])
def test_what_is_compared_has_its_name(given: Report, word: str) -> None:
    found = Numerics("torch", 0.0, 1e-7, "x", {"x": 1e-7})
    given = replace(given, rows=tuple(replace(r, numerics=r.numerics and found) for r in given.rows))
    heads = [f"{c.name} {c.unit}".strip() for table in (main_table(given), detail_table(given)) for c in table.columns]
    assert {f"max Δ {word}", f"worst {word}"} <= set(heads)
    assert f">{word.capitalize()}s<" in html(given)


def test_matrices_of_a_sweep() -> None:
    p50, speed = matrices(sweep())
    assert [c.name for c in p50.columns] == ["point", "torch", "cpu", "openvino:bfloat16", "cuda"]
    assert p50.lines[-1].cells == ("batch 32, 2 threads", "50.5", "60.7", "22.3", "failed")
    assert speed.lines[-1].cells == ("batch 32, 2 threads", "631", "525", "1,427", "failed")
    assert {line.best for line in (*p50.lines, *speed.lines)} == {frozenset({3})}
    assert matrices(two()) == ()


def test_header() -> None:
    work, machine = header(two())
    assert work == "artifacts/a|b · native · 1,000 of 22.6M parameters · adamw · batch 16 · 36.3 GFLOP"
    assert machine == "Some @ 2 GHz · 2 of 4 CPUs · Linux-6.1-x86_64 · onnxft 0.1.0"
    work, machine = header(sweep())
    assert "batch 8, 16, 32" in work and "GFLOP" not in work and "1, 2 of 4 CPUs" in machine
    assert "· inference · 22.6M parameters ·" in header(inference())[0]
    assert "· training on kept features · 1,000 of 22.6M parameters · adamw ·" in header(cached())[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (two(), r"openvino is fastest: 22.3 ms a step on average, 1.14 ± 0.05 times the speed of torch\."),
        (report([row("cpu")], "cpu"), r"Only cpu ran: 30.5 ms a step on average\."),
        (report([row("torch"), replace(row("torch-compile"), ratio=Ratio(1.037, 0.04))]),
         r"torch-compile is fastest: .*, 1.04 ± 0.04 times the speed of torch, but torch lies within the spread\."),
        (report([row("openvino"), replace(row("cpu"), ratio=Ratio(0.73, 0.03))], "openvino"),
         r"openvino is fastest: .*, 1.37 ± 0.06 times the speed of cpu\."),
        (cached(), r"openvino:bfloat16 is fastest: 11.2 ms a step on average, .* times the speed of torch\."),
        (inference(), "openvino:bfloat16 is fastest: 11.2 ms a batch on average, .*"),
        (all_failed(), r"Every side failed\."),
        (sweep(), r"openvino:bfloat16 is fastest at 6 of 6 points \(2.26 times the speed of torch\)\."),
    ],
)  # fmt: skip
def test_verdict(given: Report, words: str) -> None:
    assert re.fullmatch(words, verdict(given))


def test_notes_give_reasons_and_equal_ones_once() -> None:
    texts = {note.text: note.failed for note in notes(one_failed())}
    assert texts == {
        "openvino, openvino:bfloat16: 4 nodes fell back to cpu: gather_0, gather_1, gather_2 and 1 more": False,
        f"cuda failed: {REASON} (log: out/bench.cuda.log)": True,
    }
    assert f"cuda at all 6 points failed: {REASON} (log: out/bench.cuda.log)" in [n.text for n in notes(sweep())]
    auto = row("cpu")
    assert auto.measurement is not None
    auto = replace(auto, measurement=replace(auto.measurement, provider_requested="auto"))
    numerics = Numerics("torch", reason="not compared: the model draws random numbers")
    assert [n.text for n in notes(report([replace(auto, numerics=numerics)]))] == [
        "cpu: 'auto' was asked for, cpu runs",
        "cpu: not compared: the model draws random numbers",
    ]


def test_kept_features_have_their_price_and_a_baseline_without_them_says_so() -> None:
    assert [n.text for n in notes(cached())] == [
        "torch: keeps no features: each step trains from the inputs",
        "cpu, openvino:bfloat16: features take 1.25 ms a row, once, and 98.3 kB a row to keep",
        "openvino:bfloat16: 4 nodes fell back to cpu: gather_0, gather_1, gather_2 and 1 more",
    ]
    cell = cells(detail_table(cached()))
    assert (cell["cpu"]["features once a row"], cell["cpu"]["kept bytes a row"]) == ("1.25 ms", "98,304")
    assert cell["torch"]["features once a row"] == "-"
    assert not any("features" in n.text for n in notes(one_failed()))
    for text in (printed(cached()), markdown(cached()), html(cached())):
        assert "training on kept features" in text
        assert "98.3 kB a row to keep" in " ".join(text.split())
        assert "keeps no features" in " ".join(text.split())


@every_report
@pytest.mark.parametrize("width", [100, 80, 40])
def test_the_terminal_shows_every_cell_whatever_its_width(name: str, width: int) -> None:
    given = REPORTS[name]()
    text = printed(given, width)
    assert max(map(cell_len, text.splitlines())) <= width
    if name not in ("long_names", "hostile_names"):
        for line in main_table(given).lines:
            for cell in line.cells[1:]:
                assert cell in text
    assert "\x1b" not in text


@pytest.mark.parametrize("given", [one_failed(), with_gpu(), sweep()], ids=["six", "gpu", "sweep"])
def test_the_main_table_is_one_table_at_a_hundred_columns(given: Report) -> None:
    heads = [line for line in printed(given).splitlines() if line.split()[:1] == ["side"]]
    assert len(heads) == 1
    assert heads[0].split()[-1] == "status"


def test_colours_mark_the_best_and_the_failed() -> None:
    text = printed(one_failed(), force_terminal=True)
    assert re.search(r"\x1b\[1;32m *11\.2\x1b", text)
    assert re.search(r"\x1b\[31mcuda", text)
    assert re.search(r"\x1b\[31mcuda failed: ProviderError", text)


def test_without_colour_nothing_but_bold_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert set(re.findall(r"\x1b\[[\d;]*m", printed(one_failed(), force_terminal=True))) <= {"\x1b[1m", "\x1b[0m"}


def test_a_pipe_gets_a_hundred_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show(one_failed())
    assert capsys.readouterr().out == printed(one_failed())


def test_a_pipe_that_lacks_the_letters_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    terminal.show(one_failed())
    assert b"openvino:bfloat16 is fastest: 11.2 ms" in raw.getvalue()


def test_the_terminal_shows_names_as_they_are() -> None:
    text = " ".join(printed(one_failed()).split())
    assert f"cuda failed: {REASON} (log: out/bench.cuda.log)" in text


@every_report
def test_tables_of_markdown_have_as_many_cells_in_every_line(name: str) -> None:
    given = REPORTS[name]()
    text = markdown(given)
    expected = [main_table(given), *matrices(given), *operator_tables(given), detail_table(given)]
    tables = re.findall(r"(?m)(?:^\|.*\|\n)+", text)
    assert len(tables) == sum(len(t.groups) for t in expected)
    for lines in (table.splitlines() for table in tables):
        assert len({re.sub(r"\\.", "", line).count("|") for line in lines}) == 1
    for table in expected:
        assert all(escape(cell) in text for line in table.lines for cell in line.cells)


def test_markdown_escapes_names_and_messages() -> None:
    text = markdown(one_failed())
    assert r"artifacts/a\|b" in text
    assert r"no \[bold\]GPU\[/bold\] \<here\>" in text
    assert "| --- | ---: | ---: |" in text
    assert "| **1,4" in text
    hostile = markdown(named(one_failed(), HOSTILE))
    assert not re.search(r"(?<!\\)<|(?<!\\)`|(?<!\\)\[", hostile)


def test_without_matplotlib_the_flag_is_refused_before_anything_is_measured(
    tmp_path: Path, fake_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    args = [str(fake_artifact(tmp_path / "artifact")), "--html", str(tmp_path / "out" / "b.html")]
    result = CliRunner().invoke(bench, args)
    assert isinstance(result.exception, ConfigError)
    assert "`pip install onnxft[plot]`" in str(result.exception)
    assert "running" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_longest_operators_are_listed_and_the_rest_is_one_line() -> None:
    sides = ["cpu", "openvino:bfloat16"]
    given = report([row("torch"), *map(row, sides)])
    (table,) = operator_tables(given, most=3)
    assert [c.name for c in table.columns] == ["operator", *sides]
    assert [line.cells[0] for line in table.lines] == ["Op0", "Op1", "Op2", "others"]
    parts = [1 / 2, 1 / 4, 1 / 8, 1 / 8 - 1 / 1024]  # each operator takes half of what is left
    for i, side in enumerate(sides, start=1):
        assert [float(line.cells[i]) for line in table.lines] == pytest.approx(
            [1e3 * SECONDS[side] * part for part in parts], rel=5e-3
        )
    assert operator_tables(report([row("torch")])) == ()
    for text in (markdown(given), printed(given)):
        assert "Time per operator" in text
        assert "Op9" in text
