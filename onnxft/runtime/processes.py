"""The processes that train one model together: what they add up, agree on and end with.

All hold the same parameters. Each computes the gradients of its share of a batch; the sums over all processes are what
one process would have computed from the whole batch, and each makes the same update from them.

Every call is collective: all processes make the same calls in the same order. Each begins with a head of a few numbers,
in which a process that cannot go on says so; the others then end with its error instead of waiting for it for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ConfigError, DataError, OnnxftError
from onnxft.manifest import Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The rows of a large batch that one process computes: from rank × size up to (rank + 1) × size.

    So the shares together are the large batch as it is padded, and what is drawn for its rows can be divided likewise.
    """

    rank: int = 0
    processes: int = 1
    size: int = 1
    """Rows of a share; the large batch has `processes` times as many."""

    @property
    def whole(self) -> int:
        """Rows of the large batch."""
        return self.processes * self.size

    def place(self, rows: int) -> slice:
        """Where the share lies in a large batch of `rows`, a short one perhaps.

        One that has no rows there gets the last one, which then is to weigh nothing: a graph needs a row to run on.
        """
        start = self.rank * self.size
        return slice(start, start + self.size) if start < rows else slice(rows - 1, rows)

    def is_empty(self, rows: int) -> bool:
        """Whether a large batch of `rows` leaves this process nothing."""
        return self.rank * self.size >= rows


class Processes:
    """One process of several, by the three primitives that a way of communication gives. This one is alone."""

    rank: int = 0
    """Its number. The first, 0, writes, shows and evaluates."""
    size: int = 1

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self._over = False
        self._inside = False

    # ----- primitives of a way of communication, called by all processes -----

    def _sum(self, buffer: Array, *, patient: bool = False) -> None:
        """Replace a contiguous array by its sum over the processes; `patient`: others may take long to come."""

    def _gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        return [value]

    def _first(self, value: Any) -> Any:
        """The value of the first process."""
        return value

    def _abort(self, error: BaseException) -> NoReturn:
        """End all processes at once; the last resort, for an error between two halves of a call."""
        raise error

    # ----- what a run does together -----

    def sum(self, values: Arrays) -> dict[str, Array]:
        """{name: sum over the processes}, in the types of the values: one exchange for each type, not for each array.

        Raises:
            OnnxftError: that of a process that failed; so do all that follow.
        """
        with self._collective("sum"):
            made: dict[str, Array] = {}
            for dtype in dict.fromkeys(value.dtype for value in values.values()):
                chosen = {name: value for name, value in values.items() if value.dtype == dtype}
                flat = np.concatenate([value.ravel() for value in chosen.values()])
                self._sum(flat)
                ends = np.cumsum([value.size for value in chosen.values()])[:-1]
                parts = np.split(flat, ends)
                made |= {n: part.reshape(v.shape) for (n, v), part in zip(chosen.items(), parts, strict=True)}
            return {name: made[name] for name in values}

    def total(self, number: int) -> int:
        """The sum of a whole number over the processes."""
        with self._collective("total", number) as total:
            return total

    def any(self, flag: bool) -> bool:
        """Whether it holds in some process."""
        return self.total(int(flag)) > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, for all; the others wait for it and do not call it."""
        made = make() if self.rank == 0 else None
        with self._collective("from_first"):
            result: T = self._first(made)
            return result

    def same(self, value: object) -> bool:
        """Whether all processes have the same value."""
        with self._collective("same"):
            return len(set(map(repr, self._gather(value)))) == 1

    def require_same(self, values: Mapping[str, object], remedy: str) -> None:
        """DataError naming the first thing of `values` that is not the same in all processes."""
        with self._collective("require_same"):
            gathered: list[tuple[str, dict[str, object]]] = self._gather((self.name, dict(values)))
        (first, expected), *others = gathered
        for name, found in others:
            for what, value in expected.items():
                if found.get(what) != value:
                    raise DataError(
                        f"{name} has another '{what}' than {first} ({_short(found.get(what))}, not {_short(value)}), "
                        f"so together they would train on nothing of meaning. {remedy}"
                    )

    @property
    def name(self) -> str:
        """For messages."""
        return f"process {self.rank} of {self.size}"

    @contextmanager
    def together(self) -> Iterator[None]:
        """The block ends in all processes alike: well in each, or with the error of the lowest that failed."""
        try:
            yield
            self.total(0)  # an error elsewhere may still be on its way
        except BaseException as err:
            if self._over or self.size == 1:
                raise
            if self._inside:
                self._abort(err)
            self._head("fail", 0, err)

    @contextmanager
    def _collective(self, call: str, number: int = 0) -> Iterator[int]:
        total = self._head(call, number)
        self._inside = True
        yield total
        self._inside = False

    def _head(self, call: str, number: int, failure: BaseException | None = None) -> int:
        """What each call begins with: have all come to the same call, and has none failed? Gives the total number."""
        self._inside = True
        code = _CALLS.index(call)
        head = np.array([failure is not None, number, code, code**2], np.int64)
        self._sum(head, patient=True)
        failed, total, codes, squares = (int(n) for n in head)
        if failed:
            told = self._gather(None if failure is None else _told(self.name, failure))
            self._inside, self._over = False, True
            lowest = next(rank for rank, one in enumerate(told) if one is not None)
            error = failure if lowest == self.rank and failure is not None else _rebuilt(*told[lowest])
            if isinstance(error, OnnxftError):
                error.told = self.rank > 0
            raise error
        self._inside = False
        if codes != self.size * code or squares != self.size * code**2:
            raise OnnxftError(
                f"the processes are out of step: {self.name} is in '{call}', another one in another call. Start all "
                "of them with the same command on the same data."
            )
        return total


def require_divisible(manifest: Manifest, processes: Processes) -> None:
    """ConfigError where several processes cannot each compute the gradients of a share of a batch."""
    if processes.size == 1:
        return
    if manifest.buffers:
        reason = (
            f"BatchNorm '{manifest.buffers[0].layer}' trains on the statistics of the whole batch, and a process has "
            "only its share. Train in one process, or export without --train-batchnorm."
        )
    elif manifest.loss.scalar:
        reason = (
            f"the model computes the loss '{manifest.loss.output}' itself, as one number for the whole batch, and a "
            "process has only its share. Train in one process, or let the model give one loss for each row."
        )
    elif manifest.generator != "native":
        reason = (
            f"the gradients of the '{manifest.generator}' generator stay in its worker process, and are not summed "
            "over several. Train in one process, or export with --generator native."
        )
    else:
        return
    raise ConfigError(f"'{manifest.name}' cannot be trained in {processes.size} processes: {reason}")


_CALLS = ("fail", "sum", "total", "from_first", "same", "require_same")


def _told(name: str, failure: BaseException) -> tuple[type[BaseException], str]:
    """What the other processes raise for an error: of its kind, so that all end with one exit code."""
    if isinstance(failure, KeyboardInterrupt):
        return KeyboardInterrupt, ""
    if isinstance(failure, OnnxftError):
        return type(failure), f"{name}: {failure}"
    return OnnxftError, f"{name} ended with {type(failure).__name__}: {failure}"


def _rebuilt(kind: type[BaseException], message: str) -> BaseException:
    error = kind.__new__(kind)  # past the constructor, whose arguments are its own
    BaseException.__init__(error, message)
    return error


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


ALONE = Processes()
"""One process that trains by itself."""
