"""What the loop asks of a data set, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from onnxft.arrays import Array
from onnxft.manifest import Manifest

Batch = dict[str, Array]
"""Inputs under the names of the exported graph, `labels`, and optionally `sample_weights`, each (rows, ...)."""


class Dataset(Protocol):
    """Rows that can be read in any order, by several threads at once."""

    @property
    def source(self) -> str:
        """Where it comes from, for messages: `'train.npz'`, quotes included."""
        ...

    def __len__(self) -> int:
        """Rows, at least one."""
        ...

    @property
    def labels(self) -> Array | None:
        """(rows, ...) labels as the loss takes them, known without reading the rows; None: not known."""
        ...

    @property
    def lengths(self) -> Array | None:
        """(rows,) lengths along the open dimension of text; None: all rows have one shape."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; () where the data has none."""
        ...

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """The rows `index` (n,) as a batch {name: (n, ...)}.

        Args:
            index: numbers of the rows.
            sizes: those of the symbolic dimensions; rows of open length are padded or cut to them.
            epoch: augmented as in this epoch, by draws that depend on (seed, epoch, row) alone; None: not augmented.

        Raises:
            DataError: a row cannot be read; names the row or the file.
        """
        ...

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Check all that can be checked before the first step.

        Raises:
            DataError: an array is missing, unknown, of another kind or shape, or holds a label outside the classes,
                NaN or infinity. Names the array, the place and the value.
        """
        ...

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the contents."""
        ...
