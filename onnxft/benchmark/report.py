"""The result of a benchmark: one row per side, with everything that a number needs beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from onnxft.benchmark.config import BenchConfig, Point, Side
from onnxft.benchmark.exchange import Measurement
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.statistics import Ratio, Summary
from onnxft.errors import ProviderError, SlowerError


@dataclass(frozen=True)
class Floor:
    """The time that a step cannot beat: its multiplications at the side's peak, and the bytes of the rest.

    seconds = flops / peaks.flops + bytes / peaks.bandwidth
    """

    seconds: float
    distance: float
    """Median step over it; 1 is the floor."""


@dataclass(frozen=True)
class Row:
    """One side: a measurement with what follows from it, or the reason why there is none."""

    side: Side
    reason: str | None = None
    """Why the side failed; None where it ran."""
    log: str | None = None
    """File with the output of the failed process, where it was kept."""
    measurement: Measurement | None = None
    summary: Summary | None = None
    ratio: Ratio | None = None
    """Speed relative to the reference."""
    numerics: Numerics | None = None
    batch_size: int = 0
    threads: int = 0
    floor: Floor | None = None
    repeat_means: tuple[float, ...] = ()
    """Mean seconds of a step in each repeat."""

    @property
    def point(self) -> Point:
        """Where it was measured."""
        return Point(self.batch_size, self.threads)


@dataclass(frozen=True)
class Device:
    """The machine."""

    platform: str
    cpu: str
    logical_cpus: int
    threads: int
    """Threads of every side; of a sweep the most."""
    memory_bytes: int | None = None
    """RAM; None where the system does not tell."""
    python: str = ""
    """Version, of the process that wrote the report."""
    gpus: tuple[str, ...] = ()
    """Name, memory and driver of every NVIDIA GPU."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that change speed, as the sides inherited them."""


@dataclass(frozen=True)
class Work:
    """What was measured."""

    artifact: str
    generator: str
    precision: str
    optimizer: str
    batch_size: int
    num_trainable: int
    num_frozen: int
    flops: float | None = None
    """Floating-point operations of the model's multiplications in a step of `batch_size` rows; None: not counted."""
    bytes: float | None = None
    """Bytes that its other operators read and write, likewise."""


@dataclass(frozen=True)
class Report:
    """A whole benchmark."""

    work: Work
    config: BenchConfig
    device: Device
    started: str
    """UTC, ISO 8601."""
    onnxft: str
    """Version."""
    reference: str | None
    """The side that speeds are relative to, each at its own point; None where every side failed."""
    rows: tuple[Row, ...]

    @property
    def fastest_provider(self) -> str | None:
        """The provider with the most rows of a batch a second; None where none ran."""
        ran = [
            (r.summary.samples_per_second, r.side.name) for r in self.rows if r.summary and r.side.kind == "provider"
        ]
        return max(ran, key=lambda one: one[0])[1] if ran else None

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one point."""
        return len({(row.batch_size, row.threads) for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """The name of a row's side, with its point where there are several."""
        threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
        return f"{row.side.name} (batch {row.batch_size}, {threads})" if self.is_sweep else row.side.name

    def to_json(self) -> bytes:
        """Indented JSON, raw times included."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what `to_json` wrote."""
        return msgspec.json.decode(data, type=cls)

    def check(self) -> None:
        """Raise if the benchmark as a whole failed.

        Raises:
            ProviderError: every side failed.
            SlowerError: a provider is slower than `fail_under`, or could not be compared.
        """
        if all(row.reason is not None for row in self.rows):
            raise ProviderError(
                "every side of the benchmark failed; the reasons stand above. See what works here with `onnxft doctor`."
            )
        if self.config.fail_under is not None:
            problems = [problem for row in self.rows if (problem := self._too_slow(row, self.config.fail_under))]
            if problems:
                raise SlowerError(f"--fail-under {self.config.fail_under:g} is not met: {'; '.join(problems)}.")

    def _too_slow(self, row: Row, least: float) -> str | None:
        intended = self.rows[0].side
        if row.side == intended:
            return f"the reference '{self.label(row)}' failed" if row.reason is not None else None
        if row.side.kind == "baseline":
            return None
        if row.reason is not None:
            return f"'{self.label(row)}' failed"
        if row.ratio is None or self.reference != intended.name:
            return None  # the reference failed here, which its own row says
        return f"'{self.label(row)}' reaches {row.ratio.value:.2f}" if row.ratio.value < least else None
