"""Batches that the user's own code yields: `package.module:name` or `file.py:name`.

The name is an iterable of batches, such as a list or torch's DataLoader, or a function that returns one; the function
is called anew for each epoch, with its number (0 for the first) where it takes an argument `epoch`. A batch is
{input: (rows, ...)} of anything that numpy makes an array from. A run can be repeated and resumed exactly where the
same epoch yields the same batches: that, and what is in them, is the promise of whoever writes it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import repeat, takewhile
from typing import Any

import numpy as np

from onnxft.data.dataset import Batch
from onnxft.data.loading import read_ahead, timed
from onnxft.errors import DataError
from onnxft.named_code import named_object


class Stream:
    """A loader over the user's batches; nothing is shuffled or divided here."""

    def __init__(self, name: str, *, ahead: bool = True) -> None:
        """Import what is named; DataError where it does not exist or is no source of batches.

        `ahead`: a thread makes batches before they are asked for. The code runs in one thread at a time.
        """
        self.name, self.source, self.waited, self._ahead = name, f"'{name}'", 0.0, ahead
        self._made = named_object(name, "function or iterable", DataError)
        self._counts: dict[int, int] = {}
        if not callable(self._made) and not isinstance(self._made, Iterable):
            raise DataError(f"{self.source} is {type(self._made).__name__}: a function or an iterable yields batches.")
        if isinstance(self._made, Iterator):
            raise DataError(
                f"{self.source} is {type(self._made).__name__}, which is used up after one pass. Name the function "
                "that makes it, or a list."
            )
        self._by_epoch = callable(self._made) and "epoch" in _parameters(self._made)

    @property
    def rows(self) -> None:
        """Not known."""
        return None

    def count(self, epoch: int) -> int:
        """Batches of an epoch: its `len`, else all are made once to be counted; DataError where there is none."""
        key = self._key(epoch)
        if key not in self._counts:
            made = self._iterable(epoch)
            try:
                self._counts[key] = len(made)  # type: ignore[arg-type]
            except TypeError:
                self._counts[key] = sum(1 for _ in self._guarded(made))
        if self._counts[key] < 1:
            raise DataError(f"{self.source} yields no batch{f' in epoch {epoch + 1}' if self._by_epoch else ''}.")
        return self._counts[key]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; DataError where the code raises, or yields something else or another number."""
        with closing(self._checked(epoch, start)) as made:  # type: ignore[type-var]
            calls = repeat(partial(next, made, None))  # None ends them
            with closing(read_ahead(calls, int(self._ahead))) as batches:  # type: ignore[type-var]
                yield from timed(takewhile(lambda batch: batch is not None, batches), self)

    def fingerprint(self) -> str:
        """Of the name and the batches of the first epoch: what is in them is the user's promise."""
        return hashlib.sha256(f"{self.name} {self.count(0)}".encode()).hexdigest()

    def _key(self, epoch: int) -> int:
        return epoch if self._by_epoch else 0

    def _iterable(self, epoch: int) -> Iterable[Any]:
        if not callable(self._made):
            found: Iterable[Any] = self._made
            return found
        try:
            made = self._made(epoch=epoch) if self._by_epoch else self._made()
        except Exception as err:
            raise DataError(f"{self.source} raised {type(err).__name__}: {err}") from err
        if not isinstance(made, Iterable):
            raise DataError(f"{self.source} returns {type(made).__name__}, which yields no batches.")
        return made

    def _checked(self, epoch: int, start: int) -> Iterator[Batch]:
        # The schedule is laid out over as many batches as were counted.
        counted, number = self._counts.get(self._key(epoch)), 0
        for number, batch in enumerate(self._guarded(self._iterable(epoch)), 1):
            if counted is not None and number > counted:
                raise DataError(f"{self.source} yields more than the {counted} batches that it had when counted.")
            if number <= start:
                continue
            if not isinstance(batch, Mapping):
                raise DataError(
                    f"{self.source} yields {type(batch).__name__} as batch {number}: a batch is {{name: array}}."
                )
            try:
                yield {str(name): np.asarray(array) for name, array in batch.items()}
            except (TypeError, ValueError, RuntimeError) as err:
                raise DataError(f"{self.source} yields in batch {number} what is no array: {err}.") from err
        if counted is not None and number < counted:
            raise DataError(f"{self.source} ended after batch {number} of the {counted} that it had when counted.")

    def _guarded(self, made: Iterable[Any]) -> Iterator[Any]:
        """The items; what the user's code raises becomes a DataError with the number of the batch."""
        batches = iter(made)
        number = 0
        while True:
            number += 1
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as err:
                raise DataError(f"{self.source} raised {type(err).__name__} at batch {number}: {err}") from err
            yield batch


def _parameters(function: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin
        return {}
