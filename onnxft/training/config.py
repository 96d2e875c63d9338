"""What a training run is asked to do, as one value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import msgspec
import yaml

from onnxft.errors import ConfigError, near
from onnxft.memory import size_of
from onnxft.runtime.execution import Precision
from onnxft.runtime.providers import AUTO
from onnxft.training.metrics import BETTER
from onnxft.training.schedules import SCHEDULES

_FREE = ("epochs", "artifact", "data", "val", "workers", "tensorboard", "cache", "cache_memory")
"""What a resumed run may have otherwise: contents are compared instead of paths; no number depends on the others."""


CACHES = ("auto", "memory", "disk", "off")

RECOMPUTE = {"auto": None, "on": True, "off": False}
"""{word: whether a session is asked to compute activations again}"""

EXECUTION = ("provider", "precision", "device", "provider_options", "strict", "threads", "recompute")
"""What runs the graphs, which may be otherwise where a run goes on with another generator."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run; ConfigError where a value is unknown or out of range."""

    artifact: str | None = None
    """Directory of the artifact; recorded, so that the saved configuration repeats the run."""
    data: str | None = None
    """Rows to train on: a file, a folder, or `module:name` of code; recorded likewise. None: arrays in memory."""
    val: str | None = None
    """Rows to evaluate on, likewise."""
    split: float | None = None
    """Fraction of the rows of `data` that is held back to evaluate on; None: none."""
    input_columns: dict[str, list[str]] = field(default_factory=dict)
    """{model input: columns of a table}; the name "" stands for the only input."""
    label_columns: list[str] = field(default_factory=list)
    """Columns of a table that hold the labels."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes in the order of their numbers; empty: the artifact's, else the sorted names in the data."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """How pictures are made, over what the artifact was exported with."""
    tokenizer: str | None = None
    """Path of a tokenizer.json; None: the artifact's own."""
    buckets: list[int] = field(default_factory=list)
    """Lengths of text that a batch may have; empty: one length, which is that of the open dimension."""
    balance: bool = False
    """Whether every class is drawn equally often."""
    augment: list[str] = field(default_factory=list)
    """How pictures are changed in training: flip, vflip, crop, color, rotate."""
    workers: int = 1
    """Threads that read batches ahead; 0: none. Batches do not depend on it."""
    cache: str = "auto"
    """Where the features of the frozen part are kept after they were computed once: auto, memory, disk or off."""
    cache_memory: int | str | None = None
    """What they may take in memory, `512MB`, a bare number in MiB; None: a quarter of this machine's."""
    memory_budget: int | str | None = None
    """What this process may take in memory, likewise: batches are divided so that it does; None: no limit."""
    recompute: str = "auto"
    """Whether activations are computed again for the backward pass: on, off, or auto: where the artifact was exported
    so, with a `memory_budget` only where nothing fits that keeps them."""
    epochs: int = 10
    """Passes over the training data."""
    lr: float = 1e-3
    """Learning rate, which each parameter group multiplies by its factor; the highest one that the schedule reaches."""
    weight_decay: float | None = None
    """Weight decay of the parameter groups without one of their own; None: what the artifact was exported with."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """{parameter group: factor of its learning rate}; those not named keep what the artifact was exported with."""
    weight_decays: dict[str, float] = field(default_factory=dict)
    """{parameter group: its weight decay}; those not named keep what the artifact was exported with."""
    schedule: str = "constant"
    """Course of the learning rate over all updates: constant, linear, cosine, onecycle or step."""
    step_size: int | None = None
    """Epochs after which the schedule `step` multiplies the rate by `gamma`, again and again."""
    gamma: float | None = None
    """Factor of the schedule `step`; None: 0.1."""
    warmup: float | None = None
    """Fraction of all updates in which the rate rises; None: 0.3 for onecycle, otherwise none."""
    accumulate: int = 1
    """Batches whose gradients are added up for one update."""
    clip_norm: float | None = None
    """Greatest norm of all gradients together; None: not clipped."""
    clip_value: float | None = None
    """Greatest absolute value of a gradient's element; None: not clipped."""
    ema: float | None = None
    """Decay of the moving average of the trained parameters that is evaluated and kept as weights; None: no average."""
    weights: str | None = None
    """Weights to begin with: those of another run (its directory: the best ones) or a file; None: the artifact's."""
    adapter: str | None = None
    """Adapter to begin with instead: a folder of peft, or a `.onnx_adapter` file."""
    seed: int = 0
    """Seed of shuffling and of random masks."""
    batch_size: int | None = None
    """Rows of one batch; None: what the artifact was exported with."""
    dimensions: dict[str, int] = field(default_factory=dict)
    """{symbolic dimension besides the batch: its size}; those not named keep what the artifact was exported with."""
    provider: str = "cpu"
    """Execution provider that runs the graphs; `auto`: the fastest here, whose name is recorded then."""
    precision: Precision = "float32"
    """Of the multiplications; parameters, state and updates are float32 always."""
    device: int | None = None
    """Index among the provider's devices; None: its first."""
    provider_options: dict[str, str] = field(default_factory=dict)
    """{option of the provider: value}, over what onnxft sets."""
    strict: bool = False
    """Whether nodes on another provider than the one asked for are an error."""
    threads: int | None = None
    """Threads inside an operator; None leaves it to the runtime."""
    processes: int | None = None
    """Processes that train together, each on `batch_size` rows of a batch; None: one."""
    metric: str | None = None
    """What chooses the best weights; None: balanced_accuracy for classes, macro_f1 for several labels, else loss."""
    tensorboard: bool = False
    """Whether event files for TensorBoard are written."""
    patience: int | None = None
    """Epochs without a better metric after which training stops; None: it never stops early."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"unknown schedule {self.schedule!r}.{near(self.schedule, SCHEDULES)}")
        if self.cache not in CACHES:
            raise ConfigError(f"unknown cache {self.cache!r}.{near(self.cache, CACHES)}")
        if self.recompute not in RECOMPUTE:
            raise ConfigError(f"unknown recompute {self.recompute!r}.{near(self.recompute, RECOMPUTE)}")
        for name in ("cache_memory", "memory_budget"):
            if (size := getattr(self, name)) is not None:
                size_of(size, name)
        if self.metric is not None and self.metric not in BETTER:
            raise ConfigError(f"unknown metric {self.metric!r}.{near(self.metric, BETTER)}")
        for name in ("epochs", "accumulate", "batch_size", "threads", "processes", "patience", "step_size"):
            _require(self, name, "at least 1", lambda v: v >= 1)
        if self.schedule == "step" and self.step_size is None:
            raise ConfigError("schedule step needs step_size, the epochs after which the rate falls.")
        for name in ("step_size", "gamma"):
            if getattr(self, name) is not None and self.schedule != "step":
                raise ConfigError(f"{name} belongs to the schedule step, schedule is {self.schedule}: leave it out.")
        _require(self, "split", "a fraction above 0 and below 1", lambda v: 0 < v < 1)
        _require(self, "workers", "at least 0 and at most 64", lambda v: 0 <= v <= 64)
        if self.weights is not None and self.adapter is not None:
            raise ConfigError(
                f"weights '{self.weights}' and adapter '{self.adapter}' both say what to begin with: leave one out."
            )
        if self.split is not None and self.val is not None:
            raise ConfigError(f"split {self.split} and val '{self.val}' both say what to evaluate on: leave one out.")
        if any(size < 1 for size in self.buckets) or len(set(self.buckets)) < len(self.buckets):
            raise ConfigError(f"buckets is {self.buckets}: lengths of at least 1, each once.")
        for dimension, size in self.dimensions.items():
            if size < 1:
                raise ConfigError(f"the dimension '{dimension}' is {size}, it must be at least 1.")
        for group, factor in self.lr_factors.items():
            if not 0 < factor < math.inf:
                raise ConfigError(f"lr_factors of the group '{group}' is {factor}, it must be a finite number above 0.")
        for group, decay in self.weight_decays.items():
            if not 0 <= decay < math.inf:
                raise ConfigError(f"weight_decays of the group '{group}' is {decay}, it must be finite, at least 0.")
        for name in ("lr", "clip_norm", "clip_value", "gamma"):
            _require(self, name, "a finite number above 0", lambda v: 0 < v < math.inf)
        _require(self, "weight_decay", "a finite number, at least 0", lambda v: 0 <= v < math.inf)
        _require(self, "ema", "a decay, at least 0 and below 1", lambda v: 0 <= v < 1)
        _require(self, "warmup", "a fraction, at least 0 and below 1", lambda v: 0 <= v < 1)
        _require(self, "seed", "at least 0 and below 2**63", lambda v: 0 <= v < 2**63)

    @property
    def recomputes(self) -> bool | None:
        """Whether activations are computed again; None: where the artifact was exported so."""
        return RECOMPUTE[self.recompute]

    @property
    def places(self) -> dict[str, str]:
        """Where artifact and data lie, as far as it is known."""
        return {n: v for n in ("artifact", "data", "val") if (v := getattr(self, n)) is not None}

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


def resumed(saved: TrainConfig, asked: Mapping[str, Any], free: Collection[str] = ()) -> TrainConfig:
    """The configuration of a continued run: the saved one, with more epochs if asked for and possible.

    What is named in `free` may be otherwise too.

    Raises:
        ConfigError: an asked value differs from the saved one and would make another run of it.
    """
    values = saved.to_dict()
    # A run stays on what was found when it was begun.
    found = {"provider": AUTO, "recompute": "auto"}
    asked = {name: value for name, value in asked.items() if name not in found or value != found[name]}
    config = TrainConfig.from_mapping({**values, **asked})
    for name, value in config.to_dict().items():
        if value != values[name] and name not in (*_FREE, *free):
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
