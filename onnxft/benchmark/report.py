"""The result of a benchmark: one row per side, with everything that a number needs beside it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Measurement
from onnxft.benchmark.numerics import Numerics
from onnxft.benchmark.statistics import Ratio, Summary
from onnxft.errors import ProviderError, SlowerError


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


@dataclass(frozen=True)
class Device:
    """The machine."""

    platform: str
    cpu: str
    logical_cpus: int
    threads: int
    """Threads of every side."""


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
    """The side that speeds are relative to; None where every side failed."""
    rows: tuple[Row, ...]

    @property
    def fastest_provider(self) -> str | None:
        """The provider with the shortest mean step; None where none ran."""
        means = {r.side.name: r.summary.mean for r in self.rows if r.summary and r.side.kind == "provider"}
        return min(means, key=lambda name: means[name]) if means else None

    def to_json(self) -> bytes:
        """Indented JSON, raw times included."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what `to_json` wrote."""
        return msgspec.json.decode(data, type=cls)

    def to_markdown(self) -> str:
        """The report as a Markdown document."""
        from onnxft.benchmark.markdown import render

        return render(self)

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
        intended = self.rows[0].side.name
        if row.side.name == intended:
            return f"the reference '{intended}' failed" if row.reason is not None else None
        if row.side.kind == "baseline" or self.reference != intended:
            return None
        if row.ratio is None:
            return f"'{row.side.name}' failed"
        return f"'{row.side.name}' reaches {row.ratio.value:.2f}" if row.ratio.value < least else None
