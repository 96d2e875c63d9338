"""From what the user names as data to what the loop reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from onnxft.arrays import Array
from onnxft.data import rows
from onnxft.data.arrays import ArrayDataset
from onnxft.data.dataset import Dataset
from onnxft.data.options import DataOptions
from onnxft.data.stream import Stream
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import Manifest
from onnxft.named_code import names_code

Data = Path | str | Mapping[str, Array] | Dataset
"""A file or folder, `module:name` of code that yields batches, arrays by name, or a data set."""
T = TypeVar("T")


def open_data(data: Data, manifest: Manifest, options: DataOptions) -> Dataset | Stream:
    """What the loop reads.

    A folder holds pictures in one sub-folder for each class; `.npz` arrays; `.csv`, `.tsv`, `.jsonl` and `.ndjson`
    rows of a table.

    Raises:
        DataError: there is no such data, or it does not fit the model.
        ConfigError: an option does not fit the kind of data.
    """
    if isinstance(data, Mapping):
        return _without(options, "arrays", ArrayDataset({k: np.asarray(v) for k, v in data.items()}))
    if not isinstance(data, str | Path):
        return data
    text, path = str(data), Path(data)
    if path.is_dir():
        from onnxft.data.images import open_folder

        if options.input_columns or options.label_columns:
            raise ConfigError(f"'{text}' is a folder of pictures, which has no columns: leave out input_columns and "
                              "label_columns.")  # fmt: skip
        return open_folder(path, manifest, options)
    if names_code(text):
        return _without(options, "a source of batches", Stream(text, ahead=options.workers > 0))
    if path.suffix.lower() == ".npz":
        return _without(options, "an .npz file", ArrayDataset.load(path))
    if path.suffix.lower() in rows.SUFFIXES:
        from onnxft.data.tables import open_table

        return open_table(path, manifest, options)
    if not path.exists():
        raise DataError(f"there is no data '{text}'.")
    raise DataError(
        f"'{text}' is no data that is known: a folder of pictures, .npz, {', '.join(rows.SUFFIXES)}, or the "
        "`module:name` of code that yields batches."
    )


def _without(options: DataOptions, kind: str, opened: T) -> T:
    """`opened`; ConfigError where an option would be ignored."""
    for name in ("input_columns", "label_columns", "classes", "preprocess", "tokenizer", "augment"):
        if getattr(options, name):
            raise ConfigError(f"{name} does not apply to {kind}, which hold what the model takes. Leave it out.")
    return opened
