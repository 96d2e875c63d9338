"""From names and options to an open session and its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxft.data.dataset import Dataset
from onnxft.data.open import Data, open_data
from onnxft.data.options import DataOptions
from onnxft.data.stream import Stream
from onnxft.data.subset import split
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.named_code import names_code
from onnxft.runtime.processes import ALONE, Processes
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.plan import open_dimension


def asked_for(
    artifact: Path | str | None,
    data: Data | None,
    config: TrainConfig | Mapping[str, Any] | None,
    val: Data | None,
    saved: Mapping[str, str] | None = None,
) -> tuple[Path, Manifest, dict[str, Any]]:
    """Place and manifest of the artifact, and all options as one mapping; arguments as in `run`."""
    asked = config.to_dict() if isinstance(config, TrainConfig) else dict(config or {})
    asked |= {name: str(path) for name, path in (("artifact", artifact), ("data", data), ("val", val)) if _named(path)}
    asked = {**(saved or {}), **asked}
    place = Path(_required(asked.get("artifact"), "artifact"))
    return place, Manifest.load(place), asked


@contextmanager
def opened(
    place: Path,
    manifest: Manifest,
    config: TrainConfig,
    data: Data | None,
    val: Data | None,
    processes: Processes = ALONE,
) -> Iterator[tuple[TrainSession, Dataset | Stream, Dataset | Stream | None]]:
    """An open session, what to train on, and what to evaluate on if that is something else."""
    rows, held = _open_data(config, manifest, data, val)
    with TrainSession(
        place,
        config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
        dimensions=_dimensions(config, manifest),
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        provider_options=config.provider_options,
        strict=config.strict,
        processes=processes,
    ) as session:
        yield session, rows, held


def _named(data: object) -> bool:
    return isinstance(data, str | Path)


def _required(value: Any, name: str) -> Any:
    if value is None:
        raise ConfigError(f"no {name} is given. Name it, or a configuration that does.")
    return value


def _open_data(
    config: TrainConfig, manifest: Manifest, data: Data | None, val: Data | None
) -> tuple[Dataset | Stream, Dataset | Stream | None]:
    """What to train on, and what to evaluate on if that is something else."""
    artifact = None if config.artifact is None else Path(config.artifact)
    options = DataOptions(
        config.seed, config.input_columns, config.label_columns, config.classes, config.preprocess, config.tokenizer,
        config.augment, config.buckets, config.workers, artifact,
    )  # fmt: skip
    given = {"data": data, "val": val}
    for name, value in given.items():
        saved = getattr(config, name)
        if value is None and saved is not None:
            if names_code(saved):
                raise ConfigError(
                    f"the configuration names the code '{saved}' as {name}, and code is only run when the command line "
                    f"names it: add --{name} {saved}."
                )
            given[name] = saved
    opened = open_data(_required(given["data"], "data"), manifest, options)
    if config.split is not None:
        if given["val"] is not None:
            raise ConfigError(f"split {config.split} and val both say what to evaluate on: leave one out.")
        return split(opened, config.split, config.seed)
    if given["val"] is None:
        return opened, None
    classes = [] if isinstance(opened, Stream) else list(opened.classes)
    return opened, open_data(given["val"], manifest, replace(options, classes=classes, augment=[]))


def _dimensions(config: TrainConfig, manifest: Manifest) -> dict[str, int | tuple[int, ...]]:
    if not config.buckets:
        return dict(config.dimensions)
    name = open_dimension(manifest)
    if name in config.dimensions:
        raise ConfigError(f"buckets and the dimension '{name}' both say how long texts are: leave one out.")
    return {**config.dimensions, name: tuple(config.buckets)}
