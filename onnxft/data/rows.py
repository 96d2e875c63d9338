"""Tables as rows of cells: CSV and TSV with a header, and JSON lines. UTF-8, with or without a byte order mark."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from onnxft.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITERS, *JSON_LINES)
LARGEST_LINE = 16 << 20
"""Characters of a line or a cell, beyond which a file is no table (a quote that is never closed, say)."""
_LIMIT = threading.Lock()


class Rows:
    """The rows of a table file, read when iterated over: (number of the first line, {column: cell})."""

    def __init__(self, path: Path) -> None:
        """Read the header; DataError if there is none."""
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"'{path}' is no table: the suffix must be {', '.join(SUFFIXES)}.")
        if not path.is_file():
            raise DataError(f"there is no data file '{path}'.")
        self.path = path
        self.columns: tuple[str, ...] = ()
        self.columns = self._header()

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        with self._open() as file:
            yield from self._json(file) if self._is_json else self._delimited(file)

    @property
    def _is_json(self) -> bool:
        return self.path.suffix.lower() in JSON_LINES

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        try:
            with self.path.open(encoding="utf-8-sig", newline=None if self._is_json else "") as file:
                yield file
        except UnicodeDecodeError as err:
            raise DataError(f"'{self.path}' is not UTF-8 ({err.reason}): save it as UTF-8.") from err
        except OSError as err:
            raise DataError(f"'{self.path}' cannot be read: {err.strerror}.") from err

    def _header(self) -> tuple[str, ...]:
        with self._open() as file:
            if self._is_json:
                first = next(self._json(file), None)
                return tuple(first[1]) if first else self._none()
            names = next((cells for _, cells in self._cells(file)), None)
        if names is None:
            return self._none()
        names = [n.strip() for n in names]
        if double := [n for n in names if names.count(n) > 1]:
            raise DataError(f"'{self.path}' has the column '{double[0]}' twice in its first line: rename one.")
        return tuple(names)

    def _none(self) -> tuple[str, ...]:
        raise DataError(f"'{self.path}' is empty: {'one object a line' if self._is_json else 'a header'} is expected.")

    def _delimited(self, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
        rows = self._cells(file)
        next(rows)
        for line, cells in rows:
            if len(cells) != len(self.columns):
                raise DataError(
                    f"'{self.path}' line {line} has {len(cells)} cells, its header {len(self.columns)}: "
                    "cells with separators in them need quotes."
                )
            yield line, dict(zip(self.columns, cells, strict=True))

    def _cells(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        """(number of the first line, cells) of the rows that are not empty."""
        reader = csv.reader(file, delimiter=DELIMITERS[self.path.suffix.lower()], strict=True)
        while True:
            line = reader.line_num + 1
            try:
                with _LIMIT:  # the limit is one of the process
                    before = csv.field_size_limit(LARGEST_LINE)
                    try:
                        cells = next(reader)
                    finally:
                        csv.field_size_limit(before)
            except StopIteration:
                return
            except csv.Error as err:
                raise DataError(f"'{self.path}' line {line} cannot be read: {err}.") from err
            if cells:
                yield line, cells

    def _json(self, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
        number = 0
        while text := file.readline(LARGEST_LINE + 1):
            number += 1
            where = f"'{self.path}' line {number}"
            if len(text) > LARGEST_LINE:
                raise DataError(f"{where} has more than {LARGEST_LINE:,} characters.")
            if not text.strip():
                continue
            try:
                row = json.loads(text)  # NaN is read here and refused where a number is wanted
            except (ValueError, RecursionError) as err:
                reason = "it is nested too deeply" if isinstance(err, RecursionError) else str(err)
                raise DataError(f"{where} is not JSON: {reason}.") from err
            if not isinstance(row, dict):
                raise DataError(f'{where} holds no object: one such as {{"text": ..., "label": ...}} is expected.')
            yield number, row
