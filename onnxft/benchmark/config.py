"""What a benchmark compares, and how long: a value that reads nothing from its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from onnxft.errors import ConfigError, near
from onnxft.yaml_file import read_yaml

BASELINES = ("torch",)
COMMAND_LINE_ONLY = ("source", "python")
"""Settings that name code to run: a file may come from somebody else, so they are never read from one."""


@dataclass(frozen=True)
class Side:
    """One row of the report."""

    name: str
    kind: Literal["provider", "baseline"]


@dataclass(frozen=True)
class BenchConfig:
    """Everything that decides a benchmark; ConfigError where two values contradict each other."""

    providers: tuple[str, ...] = ("cpu",)
    """Execution providers that run the artifact."""
    baselines: tuple[str, ...] = ()
    """What they are compared with; of `BASELINES`."""
    source: str | None = None
    """`module:factory` or `file.py:factory` of the model that the torch baseline trains."""
    batch_size: int | None = None
    """Rows of a batch; None: the artifact's own."""
    threads: int | None = None
    """Threads of every side; None: as many as this process may use."""
    python: dict[str, str] = field(default_factory=dict)
    """{side: interpreter} for sides that live in another environment."""
    lr: float = 1e-3
    """Learning rate of the measured steps."""
    seed: int = 0
    """Seed of the batch and of the masks."""
    warmup_steps: int = 3
    """Steps after the first that are kept apart."""
    min_steps: int = 12
    """Measured steps, at least."""
    min_seconds: float = 3.0
    """Seconds of measured steps, at least."""
    max_steps: int = 2000
    """Measured steps, at most, however short."""
    time_limit_seconds: float = 600.0
    """A side that takes longer is killed and its row says so."""
    fail_under: float | None = None
    """Speed relative to the reference that every provider must reach."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ConfigError(problem)

    @property
    def sides(self) -> tuple[Side, ...]:
        """Baselines, then providers, in the order given."""
        return (*(Side(b, "baseline") for b in self.baselines), *(Side(p, "provider") for p in self.providers))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the configuration") -> BenchConfig:
        """Build from plain values; ConfigError for an unknown key or a value of the wrong type."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{where} has the unknown key {key!r}.{near(str(key), known)}")
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as err:
            raise ConfigError(f"{where} does not fit: {err}. Correct that value.") from err

    def _problems(self) -> list[str]:
        names = [side.name for side in self.sides]
        problems = [
            f"there is no baseline {name!r}.{near(name, BASELINES)}" for name in self.baselines if name not in BASELINES
        ]
        if not names:
            problems.append("'providers' and 'baselines' are both empty: name at least one side")
        if len(set(names)) != len(names):
            problems.append(f"a side is named twice in 'providers' and 'baselines' ({', '.join(names)}): name it once")
        if "torch" in self.baselines and self.source is None:
            problems.append("the baseline 'torch' needs the model: give 'source' as 'module:factory' (--source)")
        if self.source is not None and "torch" not in self.baselines:
            problems.append("'source' is read by the baseline 'torch' alone: add it to 'baselines' (--baseline torch)")
        problems += [
            f"'python' names the side {side!r}, which does not take part.{near(side, names)}"
            for side in self.python
            if side not in names
        ]
        for key in ("batch_size", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                problems.append(f"{key!r} is {value}: it must be at least 1")
        if self.warmup_steps < 0:
            problems.append(f"'warmup_steps' is {self.warmup_steps}: it cannot be negative")
        # Two times are the fewest that have a standard deviation.
        if self.min_steps < 2:
            problems.append(f"'min_steps' is {self.min_steps}: it must be at least 2")
        if self.max_steps < self.min_steps:
            problems.append(f"'max_steps' ({self.max_steps}) is less than 'min_steps' ({self.min_steps})")
        if not self.time_limit_seconds > self.min_seconds >= 0:
            problems.append(
                f"'time_limit_seconds' ({self.time_limit_seconds}) must exceed 'min_seconds' ({self.min_seconds}), "
                "which cannot be negative"
            )
        if self.fail_under is not None and not self.fail_under > 0:
            problems.append(f"'fail_under' is {self.fail_under}: it must be positive")
        if self.fail_under is not None and (len(names) < 2 or not self.providers):
            problems.append("'fail_under' needs a provider and something to compare it with: name a second side")
        return problems


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, dashes in keys read as underscores.

    ConfigError where it holds no mapping, or names code to run.
    """
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    for key in COMMAND_LINE_ONLY:
        if key in values:
            raise ConfigError(f"'{path}' sets {key!r}, which names code to run. Give --{key} on the command line.")
    return values
