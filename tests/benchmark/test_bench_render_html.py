from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from reports import (
    HOSTILE,
    REPORTS,
    all_failed,
    named,
    report,
    row,
    sweep,
    two,
    with_gpu,
)

from onnxft.benchmark.html import render
from onnxft.benchmark.report import Report
from onnxft.benchmark.sentences import notes, verdict
from onnxft.benchmark.statistics import summarize
from onnxft.benchmark.table import detail_table, main_table, matrices
from onnxft.cli.bench import bench

every_report = pytest.mark.parametrize("name", REPORTS)


@cache
def rendered(name: str) -> str:
    return render(REPORTS[name]())


class Page(HTMLParser):
    """Checks that every element is closed, in order, and keeps texts, identifiers and attributes."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def titles(self) -> list[str]:
        """Texts of the figures' headings."""
        return [value for name, value in self.attributes if name == "aria-label"]


@pytest.fixture(autouse=True)
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here: no page can be drawn")


@every_report
def test_the_page_is_well_formed_complete_and_needs_nothing_else(name: str) -> None:
    given = REPORTS[name]()
    text = rendered(name)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert "://" not in text
    for attribute, value in page.attributes:
        assert attribute not in ("src", "onload", "onclick", "xmlns")
        if attribute in ("href", "xlink:href"):
            assert value.startswith("#")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    shown = set(page.text)
    for table in (main_table(given), detail_table(given), *matrices(given)):
        for line in table.lines:
            assert {visible(cell) for cell in line.cells} <= shown
    assert {visible(verdict(given)), *(visible(note.text) for note in notes(given))} <= shown


def visible(text: str) -> str:
    return text.replace("\x07", "\ufffd")


@every_report
def test_identifiers_are_unique_and_references_lead_somewhere(name: str) -> None:
    text = rendered(name)
    identifiers = re.findall(r'<[^<>]* id="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:url\(|xlink:href=")#([\w-]+)', text)) <= set(identifiers)


@every_report
def test_the_same_report_gives_the_same_bytes(name: str) -> None:
    given = REPORTS[name]()
    if name != "inference":  # whose configuration has a class of its own
        given = Report.from_json(given.to_json())
    assert render(given) == rendered(name)


def test_names_are_escaped_wherever_they_stand() -> None:
    text = rendered("hostile_names")
    assert "<script" not in text and "\x07" not in text
    assert text.count("&lt;script&gt;alert(") > 50
    # In the pictures too: a name there is text, neither markup nor a formula.
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert html.escape("cpu<script>alert", quote=False) in svgs
    assert HOSTILE not in text


def test_a_name_that_begins_like_a_hidden_one_and_a_long_one_are_shown() -> None:
    text = rendered("long_names")
    assert "cpu_very.long.namevery.lo…" in text
    assert f"cpu_{'very.long.name' * 12}" in text


@pytest.mark.parametrize("ending", ["$\\frac{$", "模型", " ", "\u202e"], ids=["formula", "letters", "blank", "turn"])
def test_pictures_show_any_name(ending: str) -> None:
    text = render(named(two(), ending))
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert f">torch{ending if ending.isprintable() else ''}".rstrip() in svgs


@pytest.mark.parametrize(
    ("given", "titles"),
    [
        (two(), ["Step times of every side", "Samples a second against resident memory", "Time per operator"]),
        (all_failed(), []),
        (with_gpu(), ["Step times of every side", "Samples a second against resident memory",
                      "Samples a second against GPU memory", "Time per operator"]),
        (report([row("torch")]), ["Step times of every side", "Samples a second against resident memory"]),
        (sweep(), ["Step time against batch size", "Peak memory against batch size", "Step time against threads",
                   "Peak memory against threads", "Samples a second against resident memory", "Time per operator",
                   "Step times of every side"]),
        (report([row("cpu", n, 2) for n in (8, 16)], None), [
            "Step time against batch size", "Peak memory against batch size",
            "Samples a second against resident memory", "Time per operator", "Step times of every side"]),
    ],
    ids=["two", "all failed", "gpu", "no operators", "sweep", "sweep of batches"],
)  # fmt: skip
def test_there_is_a_picture_of_what_the_report_has(given: Report, titles: list[str]) -> None:
    assert Page(render(given)).titles() == titles


def test_many_steps_make_a_page_of_bounded_size() -> None:
    times = tuple(0.01 + 1e-6 * (i % 97) for i in range(20_000))
    one = row("cpu")
    assert one.measurement is not None
    measurement = replace(one.measurement, step_seconds=times)
    text = render(report([replace(one, measurement=measurement, summary=summarize(times, 16))], "cpu"))
    assert len(text) < 400_000
    assert "2400 dots are drawn" in text


def test_operators_beyond_the_colours_are_summed() -> None:
    text = rendered("one_failed")
    assert "others" in Page(text).text
    assert "<td>Op9</td>" not in text and ">Op9<" in text


def test_the_user_s_settings_of_matplotlib_change_nothing() -> None:
    import matplotlib

    before = rendered("two")
    with matplotlib.rc_context({"axes.linewidth": 5, "xtick.direction": "in", "svg.fonttype": "path"}):
        assert render(two()) == before


def test_the_flag_writes_the_page(
    tmp_path: Path, fake_artifact: Callable[..., Path], fake_interpreter: Callable[[Path, str], str]
) -> None:
    python = fake_interpreter(tmp_path / "python", "respond([0.1, 0.2])")
    args = [str(fake_artifact(tmp_path / "artifact")), "--python", f"cpu={python}"]
    result = CliRunner().invoke(bench, [*args, "--html", str(tmp_path / "out" / "b.html")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Only cpu ran: 150 ms a step on average." in Page((tmp_path / "out" / "b.html").read_text("utf-8")).text
