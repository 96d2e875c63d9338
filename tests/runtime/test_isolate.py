from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from onnxft.runtime.isolate import last_line, run_isolated

if sys.platform == "win32":
    pytest.skip("signals of POSIX", allow_module_level=True)


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("pass", None),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (often: out of memory)"),
    ],
)
def test_how_a_process_ended(tmp_path: Path, code: str, ended: str | None) -> None:
    result = run_isolated([sys.executable, "-c", code], tmp_path / "log", 60)
    if ended is None:
        assert result is None
    else:
        assert result is not None
        assert ended in result


def test_a_process_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).write_text(str(time.time())); time.sleep(.02)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    result = run_isolated([sys.executable, "-c", code], tmp_path / "log", 1.5)
    assert result is not None
    assert result == "no result within 1.5 s, so it was killed; raise 'time_limit_seconds'"
    time.sleep(0.2)
    last = alive.read_text()
    time.sleep(0.2)
    assert alive.read_text() == last


def test_an_interpreter_that_does_not_exist(tmp_path: Path) -> None:
    result = run_isolated([str(tmp_path / "python")], tmp_path / "log", 60)
    assert result is not None
    assert "cannot be started (No such file or directory)" in result


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"first\n  second \n\n  \n", "second"),
        (b"\x1b[31mred\xff\n", " [31mred\N{REPLACEMENT CHARACTER}"),
        (b"x" * 500, "x" * 200 + "..."),
    ],
)
def test_last_line_is_printable_and_short(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert last_line(tmp_path / "log") == line
    assert last_line(tmp_path / "none") == ""
