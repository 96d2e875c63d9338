from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tool_modules import imported

from onnxft.memory import peak_resident_bytes


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with imported("memory_estimate", "memory_estimate") as module:
        yield module


def test_the_page_shows_each_line_and_the_worst(tool: ModuleType) -> None:
    lines = [
        tool.Line("cells-head", tool.Case("steps", 16), 207_400_000, 207_000_000),
        tool.Line("news-full", tool.Case("run", 4, 4), 1_300_000_000, 1_625_000_000),
    ]
    page = tool.page(lines).splitlines()
    assert "| `cells-head` | steps | 16 | 207 | 207 | 1.00 |" in page
    assert "| `news-full` | run | 4 × 4 | 1,300 | 1,625 | 0.80 |" in page
    assert "Furthest off: `news-full`, run, batch 4, 0.80." in page


@pytest.mark.skipif(peak_resident_bytes() is None, reason="the system does not tell the peak of a process")
@pytest.mark.parametrize(("what", "accumulate"), [("steps", 1), ("run", 2)])
def test_a_case_is_measured_in_a_process_of_its_own(
    what: str, accumulate: int, tool: ModuleType, exported: Callable[..., Path]
) -> None:
    line = tool.measured("a task", exported("mlp"), tool.Case(what, 8, accumulate))
    assert (line.task, line.case.what) == ("a task", what)
    assert 0.5 < line.ratio < 2


def test_a_case_that_fails_is_told(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"a task, .*is not an artifact"):
        tool.measured("a task", tmp_path, tool.Case("steps", 8))


@pytest.mark.parametrize(("estimate", "ends"), [(110, False), (119, False), (125, True), (75, True)])
def test_an_estimate_beyond_the_limit_is_a_failure(
    estimate: int, ends: bool, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "artifacts", lambda options: {"a task": tmp_path})
    monkeypatch.setattr(tool, "measured", lambda task, artifact, case: tool.Line(task, case, estimate, 100))
    monkeypatch.setattr(sys, "argv", ["memory_estimate.py", "--out", str(tmp_path / "new" / "page.md")])
    if ends:
        with pytest.raises(SystemExit, match="off by more than 20%"):
            tool.main()
    else:
        tool.main()
    assert f"| `a task` | run | 4 × 4 | 0 | 0 | {estimate / 100:.2f} |" in (tmp_path / "new" / "page.md").read_text()
