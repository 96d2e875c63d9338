"""From names and options to an open session and its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxft.data.dataset import Dataset
from onnxft.data.open import Data, open_data
from onnxft.data.options import DataOptions
from onnxft.data.stream import Stream
from onnxft.data.subset import split
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.named_code import names_code
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.memory_estimate import base_bytes
from onnxft.runtime.processes import ALONE, Processes
from onnxft.runtime.session import TrainSession
from onnxft.training.budget import Expected, MemoryPlan
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
    return place, read_manifest(place), asked


@dataclass(frozen=True)
class Opened:
    """What a run begins with."""

    session: TrainSession
    data: Dataset | Stream
    """What is trained on."""
    val: Dataset | Stream | None
    """What is evaluated on if that is something else."""
    config: TrainConfig
    """With what a budget of memory has chosen."""
    memory: MemoryPlan


@contextmanager
def opened(
    place: Path,
    manifest: Manifest,
    config: TrainConfig,
    data: Data | None,
    val: Data | None,
    processes: Processes = ALONE,
    *,
    as_it_is: bool = False,
) -> Iterator[Opened]:
    """Data, and a session on the artifact; `as_it_is` for a resumed run, whose budget of memory has chosen already."""
    rows, held = _open_data(config, manifest, data, val)
    dimensions = _dimensions(config, manifest)
    expected = Expected(place, manifest, config, dimensions, rows, held, processes.size, base_bytes())
    if config.memory_budget is not None and not as_it_is:
        load_artifact(place)  # its graphs are read, so they are checked first
        expected = expected.fitted()
    config = expected.config
    with TrainSession(
        place,
        config.provider,
        threads=config.threads,
        batch_size=config.batch_size,
        dimensions=dimensions,
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        provider_options=config.provider_options,
        strict=config.strict,
        recompute=config.recomputes,
        processes=processes,
    ) as session:
        yield Opened(session, rows, held, config, expected.plan(session.placement.obtained))


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
