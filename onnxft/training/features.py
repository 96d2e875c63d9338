"""Features of the frozen part, computed once for every row and kept: from then on only the trained part runs.

They are kept in memory up to a budget, beyond it in a folder of the run, under the hash of all that they follow from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from onnxft.arrays import Array
from onnxft.data.dataset import Batch, Dataset
from onnxft.data.loading import Loader, RowLoader, read_ahead
from onnxft.errors import ConfigError, WriteError
from onnxft.files import sha256
from onnxft.manifest import Manifest
from onnxft.memory import size_text
from onnxft.runtime.session import TrainSession
from onnxft.training.feature_store import found, in_memory, limit, on_disk
from onnxft.training.plan import Plan
from onnxft.training.progress import Progress

FOLDER = "features"
"""Of the run directory."""


class KeptRows:
    """A data set whose rows are kept features and labels."""

    def __init__(self, data: Dataset, arrays: Mapping[str, Array]) -> None:
        """Hold `arrays`, (rows, ...) each, of the rows of `data`."""
        self._data, self._arrays = data, arrays
        self.source, self.labels, self.lengths, self.classes = data.source, data.labels, data.lengths, data.classes

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: Array, *, sizes: Mapping[str, int], epoch: int | None) -> Batch:
        """The rows `index`; they have one size, and are not augmented."""
        return {name: array[index] for name, array in self._arrays.items()}

    def check(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        """Nothing: the data set was checked before its features were computed."""

    def fingerprint(self) -> str:
        """Of the data set."""
        return self._data.fingerprint()


def keep_features(
    session: TrainSession, plan: Plan, directory: Path, progress: Progress, stop: Callable[[], bool]
) -> Plan:
    """The plan over kept features, where that is possible and not switched off; says what it saves, or why not.

    Args:
        session: computes them.
        plan: of the run.
        directory: of the run.
        progress: shows it.
        stop: whether to leave off, as the user wishes; then nothing is kept.

    Raises:
        ConfigError: they cannot be kept, and `cache` demands it.
        WriteError: they cannot be written, and `cache` demands it.
        DataError: a row cannot be read.
    """
    mode = plan.config.cache
    if mode == "off":
        return plan
    kept: dict[int, Dataset | None] = {}

    def over(loader: Loader, part: str, reason: str) -> Loader:
        if reason or not isinstance(loader, RowLoader):
            return loader
        if id(loader.data) not in kept:
            kept[id(loader.data)] = _keep(session, plan, loader, part, directory, progress, stop)
        rows = kept[id(loader.data)]
        return loader if rows is None else loader.over(rows)

    reason = _why_not(session, plan, trains=True)
    if reason:
        _refuse(f"features are not kept: {reason}", plan, progress)
    data = over(plan.data, "train", reason)
    return replace(plan, data=data, evaluated=over(plan.evaluated, plan.split, _why_not(session, plan, trains=False)))


def _why_not(session: TrainSession, plan: Plan, *, trains: bool) -> str:
    """Why the features of rows are not the same each time, or cannot be kept; empty where they can."""
    manifest, config = session.manifest, plan.config
    if not manifest.features:
        return (
            manifest.whole or f"'{manifest.name}' has no frozen part before what is trained that is a graph of its own."
        )
    loader = plan.data if trains else plan.evaluated
    if not isinstance(loader, RowLoader):
        return f"the batches of {loader.source} are made by code."
    if trains and config.augment:
        return f"the rows are augmented ({', '.join(config.augment)}), differently in each epoch."
    if config.buckets:
        return "texts have several lengths (buckets)."
    if session.processes.size > 1:
        return "several processes train together."
    return ""


def _refuse(message: str, plan: Plan, progress: Progress) -> None:
    if plan.config.cache != "auto":
        raise ConfigError(f"cache is '{plan.config.cache}', but {message} Leave cache out.")
    if plan.manifest.features or plan.manifest.whole:  # else there is nothing to keep, and nothing to say
        progress.say(message)


def _keep(
    session: TrainSession,
    plan: Plan,
    loader: RowLoader,
    part: str,
    directory: Path,
    progress: Progress,
    stop: Callable[[], bool],
) -> KeptRows | None:
    """Compute and keep the features of all rows; None where they fit nowhere, or the user wishes to stop."""
    data, folder, key = loader.data, directory / FOLDER / part, _key(session, plan, part)
    if (before := found(folder, key)) is not None:
        progress.say(f"features of {len(data):,} rows are read from '{folder}'")
        return KeptRows(data, before)
    started = time.perf_counter()
    with closing(_batches(session, loader)) as batches:  # type: ignore[type-var]
        first = next(batches)
        size = sum(len(data) * array[0].nbytes for array in first.values())
        where = _choose(plan, size, folder, len(data), progress)
        if where is None:
            return None
        progress.begin_task(f"features of {len(data):,} rows", len(data))
        rows = _shown(first, batches, progress, stop)
        try:
            if where == "memory":
                arrays = in_memory(rows, first, len(data))
            else:
                arrays = on_disk(rows, first, len(data), folder, key)
        except _StoppedError:
            return None
        except WriteError as err:
            if plan.config.cache == "disk":
                raise
            progress.say(f"features are not kept: {err}")
            return None
        finally:
            progress.end_task()
    progress.say(
        f"features of {len(data):,} rows are kept {'in memory' if where == 'memory' else f'in {folder}'} "
        f"({size_text(size)}); computing them took {time.perf_counter() - started:.1f} s, which each further pass saves"
    )
    return KeptRows(data, arrays)


def _choose(plan: Plan, size: int, folder: Path, rows: int, progress: Progress) -> str | None:
    """`memory` or `disk`; None where they fit in neither, which is an error where one of them was asked for."""
    mode, room = plan.config.cache, limit(plan.config)
    if mode == "memory" or (mode == "auto" and size <= room):
        if mode == "memory" and size > room:
            raise ConfigError(
                f"the features of {rows:,} rows have {size_text(size)}, and cache 'memory' may take "
                f"{size_text(room)}. Raise cache_memory, or use cache 'disk'."
            )
        return "memory"
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if size <= free:
        return "disk"
    problem = f"the features of {rows:,} rows have {size_text(size)}, and {size_text(free)} are free for '{folder}'"
    if mode == "disk":
        raise WriteError(folder, problem, "Nothing was left there.")
    progress.say(f"features are not kept: {problem}")
    return None


def _batches(session: TrainSession, loader: RowLoader) -> Iterator[dict[str, Array]]:
    """Features, labels and weights of all rows in order, batch by batch."""
    data, size = loader.data, session.batch_size
    reads = (
        partial(data.read, np.arange(start, min(start + size, len(data))), sizes=session.dimensions, epoch=None)
        for start in range(0, len(data), size)
    )
    inputs = [port.name for port in session.manifest.inputs]
    with closing(read_ahead(reads, loader.workers)) as batches:  # type: ignore[type-var]
        for batch in batches:
            features = session.features({name: batch[name] for name in inputs})
            yield {**features, **{name: array for name, array in batch.items() if name not in inputs}}


def _shown(first: Batch, rest: Iterator[Batch], progress: Progress, stop: Callable[[], bool]) -> Iterator[Batch]:
    """All batches, each shown when it is kept."""
    for batch in chain([first], rest):
        yield batch
        progress.advance(len(next(iter(batch.values()))))
        if stop():
            raise _StoppedError


class _StoppedError(Exception):
    """The user wishes to stop."""


def _key(session: TrainSession, plan: Plan, part: str) -> str:
    """Hash of all that features of a part of the data (`train`, `val`) follow from: the artifact, the contents, what is
    made of them, and what computes.
    """
    config, placement = plan.config, session.placement
    tokenizer = "" if config.tokenizer is None else sha256(Path(config.tokenizer))
    contents = plan.origin["val" if part == "val" else "data"]
    parts = [
        plan.origin["artifact"], contents, config.preprocess, config.input_columns, tokenizer,
        dict(session.dimensions), placement.obtained, placement.precision, placement.device, placement.options,
        placement.versions,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
