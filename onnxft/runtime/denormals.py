"""Denormal numbers, those below 1.2e-38 in float32, which some processors are slow to multiply.

They arise in the runtime's Softmax where a mask leaves tokens out, and in averages of an optimizer that get no new
gradients, such as those of rows of an embedding that no text of the last hundreds of steps has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_as_zero: ContextVar[bool] = ContextVar("denormals_as_zero", default=False)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Sessions opened within compute with 0 in their place, as torch does after `torch.set_flush_denormal(True)`.

    Where such a session is the first of the process the runtime changes the state of the calling thread too, and for
    good; else only its other threads compute so. So this is for processes of our own, not for a library in another's.
    """
    token = _as_zero.set(True)
    try:
        yield
    finally:
        _as_zero.reset(token)


def are_zero() -> bool:
    """Whether a session that is opened now computes so."""
    return _as_zero.get()
