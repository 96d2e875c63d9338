"""What a benchmark compares, and how long: a value that reads nothing from its surroundings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, Literal

import msgspec

from onnxft.errors import ConfigError, near
from onnxft.runtime.execution import PRECISIONS, Precision
from onnxft.runtime.providers import AUTO, PROVIDERS
from onnxft.yaml_file import read_yaml

ORT_TRAINING = "ort-training"
BASELINES: dict[str, tuple[Precision, ...]] = {
    "torch": ("float32", "bfloat16"),
    "torch-compile": ("float32", "bfloat16"),
    ORT_TRAINING: ("float32",),
}
"""{baseline: its precisions}; bfloat16 is torch.autocast."""
COMMAND_LINE_ONLY = ("source", "python")
"""Settings that name code to run: a file may come from somebody else, so they are never read from one."""

Scenario = Literal["train", "cached", "inference"]
"""What a step is: of training from the inputs, of training on kept features (as from the second epoch on), or a
prediction."""


@dataclass(frozen=True)
class Side:
    """A competitor: every one has a row at every point."""

    name: str
    """`NAME[:PRECISION]`"""
    kind: Literal["provider", "baseline"]

    @property
    def runs(self) -> str:
        """The provider or the baseline, without the precision."""
        return self.name.partition(":")[0]

    @property
    def precision(self) -> Precision:
        """Of the multiplications."""
        asked = self.name.partition(":")[2]
        return next((p for p in PRECISIONS if p == asked), "float32")


@dataclass(frozen=True)
class Point:
    """Where all sides are measured and compared with each other."""

    batch_size: int
    threads: int

    def __str__(self) -> str:
        """Say it in words."""
        return f"batch {self.batch_size}, {self.threads} thread{'s' if self.threads != 1 else ''}"


@dataclass(frozen=True)
class BenchConfig:
    """Everything that decides a benchmark; ConfigError where two values contradict each other."""

    providers: tuple[str, ...] = ("cpu",)
    """Execution providers that run the artifact, as `NAME[:PRECISION]`."""
    baselines: tuple[str, ...] = ()
    """What they are compared with; of `BASELINES`, as `NAME[:PRECISION]`."""
    source: str | None = None
    """`module:factory` or `file.py:factory` of the model that the baselines train."""
    scenario: Scenario = "train"
    """What a step is; with `cached` a baseline trains from the inputs all the same, as it keeps no features."""
    batch_size: int | tuple[int, ...] | None = None
    """Rows of a batch, or several numbers to sweep over; None: the artifact's own."""
    threads: int | tuple[int, ...] | None = None
    """Threads of every side, or several numbers to sweep over; None: as many as this process may use."""
    python: dict[str, str] = field(default_factory=dict)
    """{side, with or without its precision: interpreter} for sides that live in another environment; of ort-training,
    that of its worker process, which need not be named where `onnxft setup ort-training` made it."""
    device: int | None = None
    """Index among the devices of the providers that run on a GPU or NPU; None: the first."""
    provider_options: dict[str, dict[str, str]] = field(default_factory=dict)
    """{provider: {option: value}}, over what onnxft sets."""
    strict: bool = False
    """Whether a side fails where nodes run on another provider than its own."""
    lr: float = 1e-3
    """Learning rate of the measured steps."""
    seed: int = 0
    """Seed of the batch and of the masks."""
    warmup_steps: int = 3
    """Steps after the first that are kept apart."""
    min_steps: int = 12
    """Measured steps of a repeat, at least."""
    min_seconds: float = 3.0
    """Seconds of measured steps of a repeat, at least."""
    max_steps: int = 2000
    """Measured steps of a repeat, at most, however short."""
    repeats: int = 1
    """How often all sides are run in turn; a row holds the times of all repeats."""
    time_limit_seconds: float = 600.0
    """A side that takes longer is killed and its row says so."""
    profile: bool = False
    """Whether the time per operator is taken, in further steps after the measured ones."""
    fail_under: float | None = None
    """Speed relative to the reference that every provider must reach, at every point."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ConfigError(problem)

    @property
    def trains(self) -> bool:
        """Whether a step trains."""
        return self.scenario != "inference"

    def scenario_of(self, side: Side) -> Scenario:
        """What a step of the side is."""
        return "train" if self.scenario == "cached" and side.kind == "baseline" else self.scenario

    @property
    def sides(self) -> tuple[Side, ...]:
        """Baselines, then providers, in the order given."""
        return (*(Side(b, "baseline") for b in self.baselines), *(Side(p, "provider") for p in self.providers))

    def points(self, batch_size: int, threads: int) -> tuple[Point, ...]:
        """Every batch size with every number of threads; the arguments stand for what is not set."""
        sizes, counts = _several(self.batch_size) or (batch_size,), _several(self.threads) or (threads,)
        return tuple(Point(size, count) for size, count in product(sizes, counts))

    def interpreter(self, side: Side) -> str | None:
        """The Python of the side's environment; None: this one."""
        return self.python.get(side.name, self.python.get(side.runs))

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

    def _problems(self) -> Iterator[str]:
        yield from self._problems_of_sides()
        for key in ("batch_size", "threads"):
            values = _several(getattr(self, key))
            yield from (f"{key!r} is {value}: it must be at least 1" for value in values if value < 1)
            if len(set(values)) != len(values):
                yield f"{key!r} names a number twice ({', '.join(map(str, values))}): name it once"
        if self.warmup_steps < 0:
            yield f"'warmup_steps' is {self.warmup_steps}: it cannot be negative"
        # Two times are the fewest that have a standard deviation.
        if self.min_steps < 2:
            yield f"'min_steps' is {self.min_steps}: it must be at least 2"
        if self.max_steps < self.min_steps:
            yield f"'max_steps' ({self.max_steps}) is less than 'min_steps' ({self.min_steps})"
        if self.repeats < 1:
            yield f"'repeats' is {self.repeats}: it must be at least 1"
        if not self.time_limit_seconds > self.min_seconds >= 0:
            yield (
                f"'time_limit_seconds' ({self.time_limit_seconds}) must exceed 'min_seconds' ({self.min_seconds}), "
                "which cannot be negative"
            )
        if self.fail_under is not None and not self.fail_under > 0:
            yield f"'fail_under' is {self.fail_under}: it must be positive"
        if self.fail_under is not None and (len(self.sides) < 2 or not self.providers):
            yield "'fail_under' needs a provider and something to compare it with: name a second side"

    def _problems_of_sides(self) -> Iterator[str]:
        for side in self.sides:
            known: Mapping[str, tuple[Precision, ...]] = (
                BASELINES if side.kind == "baseline" else dict.fromkeys((*PROVIDERS, AUTO), PRECISIONS)
            )
            _, colon, precision = side.name.partition(":")
            if side.runs not in known:
                yield f"there is no {side.kind} {side.runs!r}.{near(side.runs, known)}"
            elif colon and precision not in known[side.runs]:
                yield (
                    f"the {side.kind} {side.runs!r} has no precision {precision!r}.{near(precision, known[side.runs])}"
                )
        if not self.sides:
            yield "'providers' and 'baselines' are both empty: name at least one side"
        names = [side.name for side in self.sides]
        if len({(side.runs, side.precision) for side in self.sides}) != len(names):
            yield f"a side is named twice in 'providers' and 'baselines' ({', '.join(names)}): name it once"
        if self.baselines and self.source is None:
            yield f"the baseline {self.baselines[0]!r} needs the model: give 'source' as 'module:factory' (--source)"
        if self.source is not None and not self.baselines:
            yield "'source' is read by baselines alone: name one in 'baselines' (--baseline torch)"
        for name in self.provider_options:
            if name not in {side.runs for side in self.sides if side.kind == "provider"}:
                yield f"'provider_options' names the provider {name!r}, which does not take part"
        if self.device is not None and self.device < 0:
            yield f"'device' is {self.device}: it must be at least 0"
        takes_python = {*names, *(side.runs for side in self.sides)}
        for name in self.python:
            if name not in takes_python:
                yield f"'python' names the side {name!r}, which does not take part.{near(name, sorted(takes_python))}"


def _several(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else value


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, dashes in keys read as underscores.

    ConfigError where it holds no mapping, or names code to run.
    """
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    for key in COMMAND_LINE_ONLY:
        if key in values:
            raise ConfigError(f"'{path}' sets {key!r}, which names code to run. Give --{key} on the command line.")
    return values
