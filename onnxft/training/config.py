"""What a training run is asked to do, as one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import yaml

from onnxft.errors import ConfigError, near
from onnxft.training.metrics import BETTER
from onnxft.training.schedules import SCHEDULES


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run; ConfigError where a value is unknown or out of range."""

    epochs: int = 10
    """Passes over the training data."""
    lr: float = 1e-3
    """Learning rate of every parameter group; the highest one that the schedule reaches."""
    weight_decay: float | None = None
    """Weight decay of every parameter group; None: what the artifact was exported with."""
    schedule: str = "constant"
    """Course of the learning rate over all updates: constant, linear, cosine or onecycle."""
    warmup: float | None = None
    """Fraction of all updates in which the rate rises; None: 0.3 for onecycle, otherwise none."""
    accumulate: int = 1
    """Batches whose gradients are added up for one update."""
    clip_norm: float | None = None
    """Greatest norm of all gradients together; None: not clipped."""
    clip_value: float | None = None
    """Greatest absolute value of a gradient's element; None: not clipped."""
    seed: int = 0
    """Seed of shuffling and of random masks."""
    batch_size: int | None = None
    """Rows of one batch; None: what the artifact was exported with."""
    dimensions: dict[str, int] = field(default_factory=dict)
    """{symbolic dimension besides the batch: its size}; those not named keep what the artifact was exported with."""
    provider: str = "cpu"
    """Execution provider that runs the graphs."""
    threads: int | None = None
    """Threads inside an operator; None leaves it to the runtime."""
    metric: str | None = None
    """What chooses the best weights; None: balanced_accuracy for classes, loss for values."""
    patience: int | None = None
    """Epochs without a better metric after which training stops; None: it never stops early."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"unknown schedule {self.schedule!r}.{near(self.schedule, SCHEDULES)}")
        if self.metric is not None and self.metric not in BETTER:
            raise ConfigError(f"unknown metric {self.metric!r}.{near(self.metric, BETTER)}")
        for name in ("epochs", "accumulate", "batch_size", "threads", "patience"):
            _require(self, name, "at least 1", lambda v: v >= 1)
        for dimension, size in self.dimensions.items():
            if size < 1:
                raise ConfigError(f"the dimension '{dimension}' is {size}, it must be at least 1.")
        for name in ("lr", "clip_norm", "clip_value"):
            _require(self, name, "a finite number above 0", lambda v: 0 < v < math.inf)
        _require(self, "weight_decay", "a finite number, at least 0", lambda v: 0 <= v < math.inf)
        _require(self, "warmup", "a fraction, at least 0 and below 1", lambda v: 0 <= v < 1)
        _require(self, "seed", "at least 0 and below 2**63", lambda v: 0 <= v < 2**63)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the configuration") -> TrainConfig:
        """Build from names and values; ConfigError names an unknown key, or a value of another type."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in {where}.{near(str(key), known)}")
        try:
            # Not strict: YAML reads 1e-3 as text.
            return msgspec.convert(dict(values), cls, strict=False)
        except msgspec.ValidationError as err:
            raise ConfigError(f"{where} does not fit: {err}.") from err

    def to_dict(self) -> dict[str, Any]:
        """Every field by name; `from_mapping` reads it back."""
        return asdict(self)

    def to_yaml(self) -> str:
        """YAML that `read_yaml` and `from_mapping` read back."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False)
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read by safe loading; ConfigError where there is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file '{path}'.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"'{path}' cannot be read as YAML: {err}") from err
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds {type(values).__name__}, not `name: value` lines.")
    return values


def resumed(saved: TrainConfig, asked: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a continued run: the saved one, with more epochs if asked for and possible.

    Raises:
        ConfigError: an asked value differs from the saved one and would make another run of it.
    """
    values = saved.to_dict()
    config = TrainConfig.from_mapping({**values, **asked})
    for name, value in config.to_dict().items():
        if value != values[name] and name != "epochs":
            raise ConfigError(
                f"the run was begun with {name} {values[name]}, and --resume cannot go on with {name} {value}. "
                f"Leave {name} out, or begin a new run."
            )
    if config.epochs != saved.epochs and (saved.schedule != "constant" or saved.warmup):
        course = f"schedule {saved.schedule}" + (f" with warmup {saved.warmup}" if saved.warmup else "")
        raise ConfigError(
            f"the run was begun with epochs {saved.epochs}, and --resume cannot go on with epochs {config.epochs}: "
            f"{course} is laid out over all updates, so the rates already used would have been others. "
            f"Leave epochs out, or begin a new run."
        )
    return config


def _require(config: TrainConfig, name: str, rule: str, holds: Any) -> None:
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise ConfigError(f"{name} is {value}, it must be {rule}.")
