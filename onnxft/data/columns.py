"""Columns of a table as arrays: numbers and class labels. Every message names the line and the column."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.labels import class_names
from onnxft.errors import DataError, near
from onnxft.manifest import Manifest, Port


class Numbers:
    """Rows of numbers for one port: from several columns, or from one that holds lists."""

    def __init__(self, path: Path, port: Port, columns: Sequence[str]) -> None:
        """Begin with no row."""
        self._path, self._port, self._columns = path, port, columns
        self._whole = np.dtype(port.dtype).kind != "f"
        self._values: array[Any] = array("q" if self._whole else "d")
        self._rows = 0
        self._shape: tuple[int, ...] | None = None

    def add(self, line: int, cells: Mapping[str, Any]) -> None:
        """One more row; DataError for a cell that holds no number, or for another number of them."""
        begun = len(self._values)
        shapes: list[tuple[int, ...]] = []
        for column in self._columns:
            if (number := self._usual(cells.get(column))) is not None:
                self._values.append(number)
                continue
            where = f"'{self._path}' line {line} column '{column}'"
            cell = present(where, column, cells)
            if isinstance(cell, list):
                shapes.append(self._add_list(where, cell))
            else:
                self._values.append(self._number(where, cell))
        count = len(self._values) - begun
        nested = shapes[0] if len(self._columns) == len(shapes) == 1 else (count,)
        shape = self._fill(nested, count, line)
        if self._shape not in (None, shape):
            before = list(self._shape or ())
            raise DataError(f"'{self._path}' line {line} has the shape {list(shape)}, not {before} as before.")
        self._shape = shape
        self._rows += 1

    def finish(self) -> Array:
        """(rows, ...) in the element type of the port."""
        assert self._shape is not None, "a table has at least one row"
        found = np.array(self._values).reshape(self._rows, *self._shape)
        if self._port.dtype == "bool" and np.isin(found, (0, 1)).all():
            return found.astype(bool)
        return found

    def _fill(self, nested: tuple[int, ...], count: int, line: int) -> tuple[int, ...]:
        """The shape of a row: that of the port, where the numbers fill it."""
        dimensions = self._port.shape[1:]
        known = [d for d in dimensions if isinstance(d, int)]
        if len(nested) == len(dimensions) and all(
            d == n for d, n in zip(dimensions, nested, strict=True) if isinstance(d, int)
        ):
            return nested
        flat = len(nested) == 1
        if flat and len(known) == len(dimensions) and math.prod(known) == count:
            return tuple(known)
        if flat and len(known) + 1 == len(dimensions) and count % math.prod(known) == 0:
            return tuple(d if isinstance(d, int) else count // math.prod(known) for d in dimensions)
        names = ", ".join(f"'{c}'" for c in self._columns[:8]) + (", ..." if len(self._columns) > 8 else "")
        raise DataError(
            f"'{self._path}' line {line} gives {count} numbers ({list(nested)}) in {names}, and the model's "
            f"'{self._port.name}' takes {list(self._port.shape)}: choose the columns with "
            f"{'--label-column' if self._port.role == 'label' else '--input-column'}."
        )

    def _usual(self, cell: Any) -> float | None:
        """The number of nearly every cell, found without ado; None: to be looked at closely."""
        if self._whole or not isinstance(cell, str) or "_" in cell:
            return None
        try:
            number = float(cell)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def _add_list(self, where: str, cell: list[Any]) -> tuple[int, ...]:
        try:
            found = np.array(cell)
        except ValueError:  # lists of unequal lengths
            found = np.array(None)
        if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise DataError(f"{where} holds a list that is not one of finite numbers, equally long at each level.")
        # numpy makes floats or unsigned numbers of whole ones beyond int64.
        if self._whole and (found.dtype.kind == "f" or (found.dtype.kind == "u" and (found >= 2**63).any())):
            raise DataError(f"{where} holds numbers that are not whole or beyond int64.")
        self._values.extend(found.astype(np.int64 if self._whole else np.float64).ravel().tolist())
        return found.shape

    def _number(self, where: str, cell: Any) -> float | int:
        number = as_number(cell)
        if number is None or not math.isfinite(number):
            hint = " Decimal points are points." if isinstance(cell, str) and "," in cell else ""
            raise DataError(f"{where} holds {cell!r}, which is no finite number.{hint}")
        if not self._whole:
            return float(number)
        if number != int(number) or abs(number) >= 2**63:
            raise DataError(f"{where} holds {cell!r}, and '{self._port.name}' takes whole numbers.")
        return int(number)


class ClassLabels:
    """One class a row, by name or by number."""

    def __init__(self, path: Path, column: str, manifest: Manifest, classes: Sequence[str]) -> None:
        """Begin with no row."""
        self._path, self._column, self._manifest, self._classes = path, column, manifest, classes
        self._cells: list[str] = []
        self._lines: list[int] = []

    def add(self, line: int, cells: Mapping[str, Any]) -> None:
        """One more row."""
        where = f"'{self._path}' line {line} column '{self._column}'"
        cell = present(where, self._column, cells)
        if isinstance(cell, bool | list | dict) or (isinstance(cell, float) and not cell.is_integer()):
            raise DataError(f"{where} holds {cell!r}, which is neither the name nor the number of a class.")
        self._cells.append(str(int(cell) if isinstance(cell, float) else cell).strip())
        self._lines.append(line)

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        """(rows,) numbers, and the names of the classes where there are any."""
        numbering = Numbering(self._cells, self._classes, self._manifest, f"'{self._path}'")
        numbers = [
            numbering.number(cell, f"'{self._path}' line {line} column '{self._column}'")
            for cell, line in zip(self._cells, self._lines, strict=True)
        ]
        return np.array(numbers, np.int64), numbering.names


class Numbering:
    """Numbers of classes that a table names or numbers.

    A cell is a name if there is a class of that name; else it is a number, unless names are numbers themselves.
    """

    def __init__(self, found: Sequence[str], given: Sequence[str], manifest: Manifest, source: str) -> None:
        """Settle the names: those given, else the manifest's, else the data's, sorted, unless all are numbers."""
        self._loss = manifest.loss
        names = tuple(given) or manifest.classes
        if not names and all(_whole(cell) is not None for cell in found):
            self.names: tuple[str, ...] = ()
        else:
            # Numbers and unknown names are met one by one, where the line is known.
            self.names = class_names([] if names else found, names, manifest, source)
        self._places = {name: i for i, name in enumerate(self.names)}
        self._takes_numbers = not any(_whole(name) is not None for name in self.names)

    def number(self, cell: str, where: str) -> int:
        """The number of a class; DataError names the place and the label."""
        if cell in self._places:
            return self._places[cell]
        number = _whole(cell) if self._takes_numbers else None
        if number is None:
            raise DataError(f"{where} has the label '{cell}', which is no class.{near(cell, self.names)}")
        count, ignored = self._loss.num_classes, self._loss.ignore_index
        if number != ignored and (number < 0 or (count is not None and number >= count)):
            last = "" if count is None else f" to {count - 1}"
            also = "" if ignored is None else f", and {ignored} does not count"
            raise DataError(
                f"{where} has the label {number}; classes are 0{last}{also}. Map the labels to that range, or export "
                "the model with more classes."
            )
        return number


def present(where: str, column: str, cells: Mapping[str, Any]) -> Any:
    """The cell of a column; DataError where it is absent or empty."""
    if column not in cells:
        raise DataError(f"{where} is missing: every line needs it.{near(column, cells)}")
    cell = cells[column]
    if cell is None or (isinstance(cell, str | list) and not (cell.strip() if isinstance(cell, str) else cell)):
        raise DataError(f"{where} is empty: fill it or remove the line.")
    return cell


def as_number(cell: Any) -> float | int | None:
    """The number that a cell holds; None where it holds none.

    >>> as_number("2.5e3"), as_number(" 7 "), as_number("1_000"), as_number(True)
    (2500.0, 7, None, None)
    """
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    if isinstance(cell, str):
        if "_" in cell:  # Python reads 1_000 as a number
            return None
        try:
            number: float | int = int(cell)
        except ValueError:
            try:
                return float(cell)
            except ValueError:
                return None
    else:
        number = cell
    if isinstance(number, int) and abs(number) >= 2**63:  # too many digits for a float, too, perhaps
        try:
            return float(number)
        except OverflowError:
            return math.inf
    return number


def _whole(cell: str) -> int | None:
    number = as_number(cell)
    if number is None or not math.isfinite(number) or number != int(number):
        return None
    return int(number)
