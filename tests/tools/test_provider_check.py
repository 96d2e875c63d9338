"""The check of providers: what it counts as a failure, without a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reports import REASON, one_failed
from tool_modules import imported

XML = """<testsuites><testsuite>
<testcase classname="a.test_state" name="test_x[cuda:float16-mlp]" time="0.5"/>
<testcase classname="a.test_state" name="test_x[cuda-mlp]" time="0.5"><failure message="wrong&#10;by far"/></testcase>
<testcase classname="a.test_state" name="test_x[tensorrt-mlp]" time="0"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with imported("provider_check", "provider_check") as module:
        yield module


def evidence(tool: ModuleType) -> Any:
    return tool.Evidence(["cuda", "tensorrt"], ["cuda", "cuda:float16", "tensorrt"], "2026-01-02", {}, {})


def test_every_precision_of_a_provider_is_a_side(tool: ModuleType) -> None:
    assert tool.sides_of(["cpu", "cuda"]) == ["cpu", "cuda", "cuda:bfloat16", "cuda:float16"]


@pytest.mark.parametrize(
    ("test", "side", "belongs"),
    [
        ("test_x[cuda:float16-mlp]", "cuda:float16", True),
        ("test_x[cuda:float16-mlp]", "cuda", False),
        ("test_x[mlp-cuda]", "cuda", True),
        ("test_cuda", "cuda", False),
    ],
)
def test_a_test_belongs_to_the_side_it_names(tool: ModuleType, test: str, side: str, belongs: bool) -> None:
    assert tool.belongs(test, side) is belongs


def test_failed_tests_and_sides_without_a_passed_one_are_failures(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "run", lambda *_, **__: (tmp_path / "tests.xml").write_text(XML))
    found = evidence(tool)
    tool.conform(found, (), tmp_path)
    assert [t.result for t in found.tests] == ["passed", "failed", "skipped"]
    assert found.failures == [
        "test_state::test_x[cuda-mlp]: wrong",
        "no test passed on cuda (wrong)",
        "no test passed on tensorrt (no GPU)",
    ]


def test_a_side_that_could_not_be_measured_is_a_failure(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = one_failed()

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        place = Path(arguments[arguments.index("--out") + 1])
        place.mkdir()
        (place / "cells-head.1.json").write_bytes(given.to_json())
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(tool, "run", run)
    found = evidence(tool)
    tool.measure(found, "cells-*", 2, tmp_path)
    (failed,) = (row.side.name for row in given.rows if row.reason is not None)
    assert found.failures == [f"benchmark cells-head.1, {failed}: {REASON}"]
    assert len(found.bench["cells-head"]["rows"]) == len(given.rows)
