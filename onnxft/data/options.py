"""How a source of data is read, beyond where it lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataOptions:
    """The options of a run that decide what a row is."""

    seed: int = 0
    """Seed of the augmentation."""
    input_columns: dict[str, list[str]] = field(default_factory=dict)
    """{model input: columns of a table}; the name "" stands for the only input of a model."""
    label_columns: list[str] = field(default_factory=list)
    """Columns of a table that hold the labels; empty: the column `labels` or `label`."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes in the order of their numbers; empty: the manifest's, else the sorted names in the data."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Size, mean, standard deviation, colour, ... of pictures; over the manifest's."""
    tokenizer: str | None = None
    """Path of a tokenizer.json; None: the artifact's own."""
    augment: list[str] = field(default_factory=list)
    """Augmentations, by name, in training only."""
    buckets: list[int] = field(default_factory=list)
    """Sizes of the open dimension of text that a batch may have; empty: the one size of the session."""
    workers: int = 1
    """Threads that read ahead; the batches of code are made by one at most."""
    artifact: Path | None = None
    """Directory of the artifact, where its own tokenizer.json lies."""
