"""Tables: CSV and TSV with a header, and JSON lines, whose columns are numbers, texts, paths of pictures and labels.

Which columns a model input reads is said by `--input-column`, or follows: the column of the input's name; for a model
of one input the column `text` of a text, else the only one that is neither label nor weight; for numbers all of those.
Labels are in `--label-column`, or in `labels` or `label`. A column `sample_weights` weights the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.assignment import input_columns, label_columns, next_token, require_ignored
from onnxft.data.columns import ClassLabels, Numbering, Numbers, present
from onnxft.data.dataset import Batch
from onnxft.data.images import Pictures, inside
from onnxft.data.options import DataOptions
from onnxft.data.rows import Rows
from onnxft.data.text import FILE, INPUTS, Text, Tokenizer, Tokens
from onnxft.errors import DataError
from onnxft.files import sha256
from onnxft.manifest import BATCH, LABELS, SAMPLE_WEIGHTS, Manifest, Port
from onnxft.runtime.batches import check_batch
from onnxft.runtime.evaluation import data_ports
from onnxft.runtime.sizes import fixed_shape

_BLOCK = 256


class TableDataset:
    """Rows of a table, in the order of its lines."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        options: DataOptions,
        arrays: Mapping[str, Array],
        classes: tuple[str, ...],
        pictures: Mapping[str, Pictures],
        tokens: Tokens | None,
        digest: str,
    ) -> None:
        """Hold the parts; `open_table` makes them."""
        self.source = f"'{path}'"
        self.classes = classes
        self._manifest, self._buckets, self._digest = manifest, options.buckets, digest
        self._arrays, self._pictures, self._tokens = arrays, pictures, tokens
        self._token_port = next((p for p in data_ports(manifest) if p.name == INPUTS[0]), None)

    def __len__(self) -> int:
        parts = [*self._arrays.values(), *(p.files for p in self._pictures.values())]
        return len(parts[0]) if parts else len(self._tokens.lengths) if self._tokens else 0

    @property
    def labels(self) -> Array | None:
        """Those of whole rows; labels along the tokens of a text depend on its length and are not known before."""
        return self._arrays.get(LABELS)

    @property
    def lengths(self) -> Array | None:
        """Numbers of tokens, at most the greatest bucket; None where texts have one length in the model."""
        if self._tokens is None or self._token_port is None or isinstance(self._token_port.shape[1], int):
            return None
        lengths = self._tokens.lengths
        return np.minimum(lengths, max(self._buckets)) if self._buckets else lengths

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """The rows `index`: texts padded or cut to `sizes`, pictures changed as in the epoch."""
        batch = self._without_pictures(index, sizes)
        for name, pictures in self._pictures.items():
            batch[name] = pictures.read(index, sizes=sizes, epoch=epoch)
        return batch

    def _without_pictures(self, index: Array, sizes: Mapping[str, int]) -> Batch:
        batch = {name: array[index] for name, array in self._arrays.items()}
        if self._tokens is not None and self._token_port is not None:
            known = {BATCH: len(index), **self._manifest.dimensions, **sizes}
            batch |= self._tokens.read(index, fixed_shape(self._token_port, known)[1])
        return batch

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Every row against the model; of pictures every header, and the first as a whole."""
        for pictures in self._pictures.values():
            pictures.check(sizes)
        ports = data_ports(manifest)
        others = tuple(p for p in ports if p.name not in self._pictures)
        try:
            for start in range(0, len(self) if others else 0, _BLOCK):
                block = np.arange(start, min(start + _BLOCK, len(self)))
                check_batch(self._without_pictures(block, sizes), others, manifest.loss, sizes, first_row=start)
            if self._pictures:
                check_batch(self.read(np.array([0]), sizes=sizes, epoch=None), ports, manifest.loss, sizes)
        except DataError as err:
            raise DataError(f"{self.source}: {err}") from err

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the table, of the tokenizer, and of the pictures."""
        digest = hashlib.sha256(self._digest.encode())
        for pictures in self._pictures.values():
            pictures.update(digest)
        return digest.hexdigest()


def open_table(path: Path, manifest: Manifest, options: DataOptions) -> TableDataset:
    """Read a table.

    Raises:
        DataError: the file is missing or no table, a column is missing, a cell is empty or does not fit its column
            (the line and the column are named), or a package that the data needs is missing.
        ConfigError: an option is unknown or does not fit the model.
    """
    rows = Rows(path)
    labels = label_columns(rows, manifest, options)
    inputs = input_columns(rows, manifest, options, labels)
    reader = _Reader(rows, manifest, options, inputs, labels)
    for line, cells in rows:
        reader.add(line, cells)
    return reader.finish()


class _Reader:
    """Fills the columns, line by line."""

    def __init__(
        self,
        rows: Rows,
        manifest: Manifest,
        options: DataOptions,
        inputs: Mapping[str, Sequence[str]],
        labels: Sequence[str],
    ) -> None:
        self._path, self._manifest, self._options = rows.path, manifest, options
        self._inputs, self._label_columns = inputs, labels
        self._ports = {p.name: p for p in data_ports(manifest)}
        self._numbers: dict[str, Numbers] = {}
        self._pictures: dict[str, list[Path]] = {}
        self._classes: ClassLabels | None = None
        self._texts: list[Text] = []
        self._tags: list[list[Any]] = []
        self._lines: list[int] = []
        label = self._ports.get(LABELS)
        if label is not None and labels:
            one_class = manifest.loss.kind == "cross_entropy" and len(label.shape) == 1
            if one_class and len(labels) > 1:
                raise DataError(f"'{self._path}': a class is one label column, not {len(labels)}.")
            self._along_tokens = not one_class and INPUTS[0] in inputs and label.shape == self._ports[INPUTS[0]].shape
            if one_class:
                self._classes = ClassLabels(self._path, labels[0], manifest, options.classes)
            elif self._along_tokens:
                require_ignored(manifest)
            else:
                self._numbers[LABELS] = Numbers(self._path, label, labels)
        else:
            self._along_tokens = False
        if SAMPLE_WEIGHTS in rows.columns:
            weight = Port(SAMPLE_WEIGHTS, "sample_weight", "float32", (BATCH,))
            self._numbers[SAMPLE_WEIGHTS] = Numbers(self._path, weight, [SAMPLE_WEIGHTS])

    def add(self, line: int, cells: Mapping[str, Any]) -> None:
        """One more row."""
        for name, columns in self._inputs.items():
            if name == INPUTS[0]:
                self._texts.append(self._text(line, cells, columns))
                continue
            if not self._lines:
                self._begin(name, columns, cells)
            if name in self._pictures:
                self._pictures[name].append(self._picture(line, cells, columns[0]))
            else:
                self._numbers[name].add(line, cells)
        self._lines.append(line)
        for name in (LABELS, SAMPLE_WEIGHTS):
            if name in self._numbers:
                self._numbers[name].add(line, cells)
        if self._classes is not None:
            self._classes.add(line, cells)
        if self._along_tokens:
            self._tags.append(self._tag_list(line, cells))

    def finish(self) -> TableDataset:
        """The data set; DataError if there was no row."""
        if not self._lines:
            raise DataError(f"'{self._path}' has no rows below its header.")
        arrays = {name: numbers.finish() for name, numbers in self._numbers.items()}
        classes: tuple[str, ...] = ()
        if self._classes is not None:
            arrays[LABELS], classes = self._classes.finish()
        digest = sha256(self._path)
        tokens = None
        if self._texts:
            tokenizer = Tokenizer(self._tokenizer_path())
            digest += hashlib.sha256(tokenizer.content).hexdigest()
            tags, classes = self._numbered_tags() if self._along_tokens else (None, classes)
            loss = self._manifest.loss
            tokens = Tokens(
                self._texts, tokenizer, [n for n in INPUTS if n in self._ports],
                [f"'{self._path}' line {line}" for line in self._lines],
                tags=tags, next_token=next_token(self._manifest, self._label_columns), ignored=loss.ignore_index,
            )  # fmt: skip
        pictures = {
            name: Pictures(files, self._manifest, self._options, name) for name, files in self._pictures.items()
        }
        return TableDataset(
            self._path, self._manifest, self._options, arrays, classes, pictures, tokens, digest
        )  # fmt: skip

    def _begin(self, name: str, columns: Sequence[str], cells: Mapping[str, Any]) -> None:
        """Numbers, or paths of pictures: one column of text for an input of a picture's rank."""
        port = self._ports[name]
        if len(columns) == 1 and len(port.shape) > 2 and isinstance(cells.get(columns[0]), str):
            self._pictures[name] = []
        else:
            self._numbers[name] = Numbers(self._path, port, columns)

    def _picture(self, line: int, cells: Mapping[str, Any], column: str) -> Path:
        where = f"'{self._path}' line {line} column '{column}'"
        cell = present(where, column, cells)
        if not isinstance(cell, str) or "\0" in cell:
            raise DataError(f"{where} holds {cell!r}, which is no path of a picture.")
        folder = self._path.parent
        file = folder / cell.strip()
        try:
            inside(file, folder.resolve())
        except DataError as err:
            raise DataError(f"{where}: {err}") from err
        if not file.is_file():
            raise DataError(f"{where}: there is no picture '{file}'. Paths are relative to the table.")
        return file

    def _text(self, line: int, cells: Mapping[str, Any], columns: Sequence[str]) -> Text:
        found: list[Any] = []
        for column in columns:
            where = f"'{self._path}' line {line} column '{column}'"
            cell = present(where, column, cells)
            is_words = isinstance(cell, list) and len(columns) == 1 and all(isinstance(w, str) for w in cell)
            if not isinstance(cell, str) and not is_words:
                raise DataError(f"{where} holds {str(cell)[:40]!r}, which is no text.")
            if self._texts and is_words != isinstance(self._texts[0], list):
                raise DataError(f"{where}: texts and lists of words are mixed; give one or the other.")
            found.append(cell)
        return (found[0], found[1]) if len(found) == 2 else found[0]

    def _tag_list(self, line: int, cells: Mapping[str, Any]) -> list[Any]:
        column = self._label_columns[0]
        where = f"'{self._path}' line {line} column '{column}'"
        cell = present(where, column, cells)
        if not isinstance(cell, list) or any(isinstance(t, bool) or not isinstance(t, str | int) for t in cell):
            raise DataError(f"{where} must be a list of class names or numbers, one for each word or token.")
        return cell

    def _numbered_tags(self) -> tuple[list[list[int]], tuple[str, ...]]:
        names = [str(tag) for tags in self._tags for tag in tags]
        ignored = str(self._manifest.loss.ignore_index)
        kinds = sorted({n for n in names if n != ignored})
        numbering = Numbering(kinds, self._options.classes, self._manifest, f"'{self._path}'")
        places = [f"'{self._path}' line {line} column '{self._label_columns[0]}'" for line in self._lines]
        return [
            [int(t) if str(t) == ignored else numbering.number(str(t), where) for t in tags]
            for tags, where in zip(self._tags, places, strict=True)
        ], numbering.names

    def _tokenizer_path(self) -> Path:
        if self._options.tokenizer is not None:
            return Path(self._options.tokenizer)
        own = None if self._options.artifact is None else self._options.artifact / FILE
        if own is None or not own.is_file():
            raise DataError(
                f"the artifact '{self._manifest.name}' has no {FILE} of its own: name one with --tokenizer."
            )
        return own
