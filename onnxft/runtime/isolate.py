"""Running a command in a process of its own that may crash, hang or print anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NUM_TAIL_CHARACTERS = 200


def run_isolated(
    command: Sequence[str],
    log: Path,
    time_limit: float,
    environment: Mapping[str, str] | None = None,
    setting: str = "'time_limit_seconds'",
) -> str | None:
    """Run `command` with its output in `log`, and `environment` over this process's own; None, or how it failed.

    The process gets a session of its own, so that its children are ended with it: after `time_limit`
    seconds, and when this process is interrupted. `setting` is what the user raises for a longer limit.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as err:
            return f"'{command[0]}' cannot be started ({err.strerror})"
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            return f"no result within {time_limit:g} s, so it was killed; raise {setting}"
        finally:
            _kill(process)
    if code == 0:
        return None
    if code < 0:
        hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
        return f"the process was ended by {_signal_name(-code)}{hint}"
    return f"the process ended with exit code {code}"


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, printable and shortened; empty where there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def shortened(text: str) -> str:
    """What another program printed, as part of a line: printable characters, and not too many."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable if len(printable) <= NUM_TAIL_CHARACTERS else printable[:NUM_TAIL_CHARACTERS] + "..."


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
