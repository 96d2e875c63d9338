"""Fields of a protobuf message in a mapped file: what they lead to is read when asked for, the rest stays unread."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnxft.errors import ArtifactError


@contextmanager
def reading(path: Path) -> Iterator[Message]:
    """The message that a file is; ArtifactError where the file is empty, or the block finds no message in it."""
    if path.stat().st_size == 0:
        raise ArtifactError(f"'{path}' is empty. Export the artifact again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            yield Message(data, 0, len(data))
        except (IndexError, UnicodeDecodeError, RecursionError) as err:
            raise ArtifactError(f"'{path}' is not an ONNX model: {err}. Export the artifact again.") from None


@dataclass(frozen=True)
class Message:
    """Bytes `start` to `end` of a file. Methods raise IndexError where they are no message."""

    data: mmap.mmap | bytes
    start: int
    end: int

    def fields(self) -> Iterator[tuple[int, Message]]:
        """(number, contents) of every length-delimited field."""
        for number, value in self._every():
            if isinstance(value, Message):
                yield number, value

    def every(self, number: int) -> list[Message]:
        """The contents of each length-delimited field with this number."""
        return [contents for n, contents in self.fields() if n == number]

    def first(self, number: int) -> Message | None:
        """The contents of the first length-delimited field with this number."""
        return next((contents for n, contents in self.fields() if n == number), None)

    def integers(self, number: int) -> list[int]:
        """The signed integers of a field with this number, packed or not."""
        found: list[int] = []
        for n, value in self._every():
            if n != number:
                continue
            if isinstance(value, int):
                found.append(value)
            else:
                at = value.start
                while at < value.end:
                    one, at = value.varint(at)
                    found.append(one)
        return [n - 2**64 if n >= 2**63 else n for n in found]

    def texts(self, number: int) -> list[str]:
        """Each text of a field with this number."""
        return [contents.text() for contents in self.every(number)]

    def holds(self, words: Collection[bytes]) -> bool:
        """Whether one of the words stands anywhere in it."""
        contents = self.data[self.start : self.end]
        return any(word in contents for word in words)

    def text(self) -> str:
        """The bytes as UTF-8."""
        return self.data[self.start : self.end].decode()

    def varint(self, at: int) -> tuple[int, int]:
        """The number at a place, and the place behind it."""
        value = shift = 0
        while True:
            if at >= self.end or shift > 63:
                raise IndexError("a number ends behind its message")
            byte = self.data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def _every(self) -> Iterator[tuple[int, Message | int]]:
        """(number, contents or number) of every field but those of fixed width, which are passed over."""
        at = self.start
        while at < self.end:
            tag, at = self.varint(at)
            match tag & 7:
                case 0:
                    value, at = self.varint(at)
                    yield tag >> 3, value
                case 1:
                    at += 8
                case 5:
                    at += 4
                case 2:
                    length, at = self.varint(at)
                    if at + length > self.end:
                        raise IndexError("a field ends behind its message")
                    yield tag >> 3, Message(self.data, at, at + length)
                    at += length
                case other:
                    raise IndexError(f"a field has the wire type {other}")
