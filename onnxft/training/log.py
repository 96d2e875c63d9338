"""`train.log`: what a run was asked and said, each line with the time, across all its resumes."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from onnxft import __version__
from onnxft.errors import WriteError
from onnxft.files import append
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.progress import LineProgress


class Log(LineProgress):
    """The lines of a run in a file."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, after its last whole line."""
        super().__init__()
        if path.exists():
            _cut_to_whole_lines(path)
        self._path = path

    def say(self, note: str) -> None:
        """Write a line."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in note.splitlines():
            append(self._path, f"{now} {line}\n".encode())

    def begin(self, session: TrainSession, config: TrainConfig, where: str) -> None:
        """The facts of a start; `where` says whether it is one or a resume."""
        manifest, placement = session.manifest, session.placement
        total = manifest.num_trainable + manifest.frozen_parameters
        default = TrainConfig().to_dict()
        asked = {k: v for k, v in config.to_dict().items() if v != default[k]}
        self.say(f"onnxft {__version__}: {where}")
        self.say(f"artifact {manifest.name} ({manifest.generator}, {manifest.optimizer.kind}, {manifest.loss.kind})")
        provider, *graphs = placement.lines()
        self.say(f"provider {provider}")
        for line in graphs:
            self.say(f"  {line}")
        self.say(f"versions {', '.join(f'{name} {version}' for name, version in placement.versions.items())}")
        together = f" in each of {n} processes" if (n := session.processes.size) > 1 else ""
        self.say(f"batch size {session.batch_size}{together}, trainable {manifest.num_trainable:,} / {total:,}")
        if manifest.recomputes():
            self.say(f"activations are {'computed again' if session.recomputes else 'kept'}")
        self.say(f"options {', '.join(f'{name} {value}' for name, value in asked.items()) or 'all default'}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what ended the run, if it was an error."""
        if kind is not None:
            with suppress(WriteError):  # a full disk must not hide the error that it made
                self.say(f"ended by {kind.__name__}{f': {value}' if str(value) else ''}")


def _cut_to_whole_lines(path: Path) -> None:
    """A full disk may have kept a part of the last line."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
