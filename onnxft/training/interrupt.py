"""Ctrl-C as a wish that the loop fulfils between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """Inside the block, the first Ctrl-C sets `asked`; the second one ends at once, as it does elsewhere.

    `terminated` takes SIGTERM for the same wish: what mpirun makes of Ctrl-C.
    Python hands signals to the main thread only: in any other one `asked` stays False.
    """

    def __init__(self, *, terminated: bool = False) -> None:
        """Nothing is asked yet."""
        self.asked = False
        self._signals = (signal.SIGINT, *([signal.SIGTERM] if terminated else []))
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
