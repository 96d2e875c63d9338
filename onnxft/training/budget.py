"""How much memory a run will take, and what it does so that it keeps to a budget.

A batch is divided into micro-batches whose gradients are added up, so that an update has the rows that were asked for:
it is the same up to rounding, but that dropout draws other masks. The rule is: the largest batches that fit and keep
their activations; only where none do, the largest that fit and compute activations again, which is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from onnxft.data.dataset import Dataset
from onnxft.data.loading import AHEAD
from onnxft.data.stream import Stream
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.memory import size_of, size_text
from onnxft.runtime.memory_estimate import ACTIVATIONS, WRITING, MemoryEstimate, MemoryModel, Use, why_no_estimate
from onnxft.runtime.sizes import Sizes, combined
from onnxft.training.config import TrainConfig
from onnxft.training.confusion import pixels
from onnxft.training.curves import can_plot
from onnxft.training.feature_store import bytes_in_memory, limit

T = TypeVar("T")

MATPLOTLIB_BYTES = 40_000_000
"""Of matplotlib with the picture of the curves; measured."""
PIXEL_BYTES = 50
"""That it takes for a pixel of the confusion matrix; measured."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run is expected to take of this process's memory."""

    estimate: MemoryEstimate | None = None
    why_not: str = ""
    """Why there is no estimate."""
    budget: int | None = None
    """Bytes that it may take; None: no limit was set."""
    picked: str = ""
    """What the budget chose."""

    @property
    def line(self) -> str:
        """What is expected, in a line."""
        if self.estimate is None:
            return f"not estimated: {self.why_not}"
        of = "" if self.budget is None else f"; the budget is {size_text(self.budget)}"
        return f"{self.estimate.line}{of}{self.picked and f': {self.picked}'}"

    def outcome(self, measured: int | None) -> str:
        """What was measured, against what was expected."""
        if measured is None:
            return "the system does not tell the peak of this process"
        found = f"peak {size_text(measured)}"
        if self.estimate is None:
            return found
        return f"{found}, estimated {size_text(self.estimate.total)} ({self.estimate.total / measured - 1:+.0%})"

    def record(self, measured: int | None) -> dict[str, object]:
        """For the summary of a run; bytes."""
        return {
            "measured": measured,
            "estimate": None if self.estimate is None else self.estimate.total,
            "parts": {} if self.estimate is None else self.estimate.parts,
            "budget": self.budget,
            "picked": self.picked,
        }


@dataclass(frozen=True)
class Expected:
    """What can be said of the memory of a run when its data is open and its session is not yet."""

    directory: Path
    manifest: Manifest
    config: TrainConfig
    dimensions: Sizes
    data: Dataset | Stream
    val: Dataset | Stream | None
    processes: int
    base: int
    """Bytes of this process."""
    picked: str = ""

    def plan(self, provider: str) -> MemoryPlan:
        """The estimate, where it can be made for the provider that runs the graphs."""
        reason = why_no_estimate(self.manifest, provider)
        budget = None if self.config.memory_budget is None else size_of(self.config.memory_budget)
        if reason:
            return MemoryPlan(None, reason, budget, self.picked)
        return MemoryPlan(self._estimate(self._model(), self.config), "", budget, self.picked)

    def fitted(self) -> Expected:
        """With what keeps to the configuration's budget, by the rule of this module.

        Raises:
            ConfigError: nothing does, which names the least that would do; or a budget cannot be kept here.
        """
        self._require_possible()
        budget, model, config = size_of(self.config.memory_budget or 0), self._model(), self.config
        rows = (config.batch_size or self.manifest.batch_size) * config.accumulate
        asked = config.batch_size or self.manifest.batch_size
        takes_the_rest = config.cache == "auto" and config.cache_memory is None
        sizes = [n for n in range(asked, 0, -1) if rows % n == 0] if not self._why_whole else [asked]

        def divided(size: int, again: bool) -> TrainConfig:
            # Features that may be on disk too take what is left, so none is counted here.
            room = 0 if takes_the_rest else config.cache_memory
            kind = "on" if again else "off"
            return replace(config, batch_size=size, accumulate=rows // size, cache_memory=room, recompute=kind)

        kinds = [[divided(size, again) for size in sizes] for again in self._kinds]
        found = (largest(kind, lambda c: self._estimate(model, c).total <= budget) for kind in kinds)
        chosen = next((c for c in found if c is not None), None)
        if chosen is None:
            ends = [(c, self._estimate(model, c)) for kind in kinds for c in (kind[0], kind[-1])]
            raise ConfigError(self._nothing_fits(budget, *min(ends, key=lambda end: end[1].total)))
        if takes_the_rest:
            left = (budget - self._estimate(model, chosen).total) // len(self._kept_sets)
            chosen = replace(chosen, cache_memory=min(left, limit(config)) // 2**20)
        return replace(self, config=chosen, picked=self._picked(asked, chosen))

    def _picked(self, asked: int, chosen: TrainConfig) -> str:
        """What the budget chose, where batches of `asked` rows were asked for."""
        size = chosen.batch_size
        why = "as asked for" if size == asked else f"instead of {asked}, the most that fits"
        added = "" if chosen.accumulate == 1 else f", the gradients of {chosen.accumulate} added up for an update"
        kind = ""
        if self.manifest.recomputes():
            why_again = "as asked for" if self.config.recomputes else "nothing fits that keeps them"
            kind = f", activations recomputed ({why_again})" if chosen.recomputes else ", activations kept"
        return f"batches of {size} ({why}){added}{kind}"

    @property
    def _kinds(self) -> tuple[bool, ...]:
        """Whether activations are computed again, the fastest first."""
        asked = self.config.recomputes
        return (False, True) if asked is None and self.manifest.recomputes() else (self.manifest.recomputes(asked),)

    def _model(self) -> MemoryModel:
        return MemoryModel(self.directory, self.manifest, self.base)

    def _estimate(self, model: MemoryModel, config: TrainConfig) -> MemoryEstimate:
        batch = config.batch_size or self.manifest.batch_size
        clips = config.clip_norm is not None or config.clip_value is not None
        use = Use(
            accumulates=clips or config.accumulate > 1 or self.processes > 1 or config.precision != "float32",
            clips=clips,
            evaluates=True, averages=config.ema is not None, saves=True, read_ahead=AHEAD * config.workers,
            recompute=self.manifest.recomputes(config.recomputes),
        )  # fmt: skip
        found = model.estimate(combined(self.manifest, batch, self.dimensions), use)
        kept = sum(bytes_in_memory(self.manifest, config, d) for d in self._kept_sets)
        more = self._drawing - found.parts.get(WRITING, 0)
        if more > 0:  # checkpoints are written, and then pictures are drawn
            found = found.with_part("drawing pictures", more)
        return found.with_part("kept features", kept) if kept else found

    @property
    def _drawing(self) -> int:
        """Bytes that the pictures at the end of a run take."""
        loss = self.manifest.loss
        classes = loss.num_classes or 0 if loss.kind == "cross_entropy" and not loss.per_position else 0
        return MATPLOTLIB_BYTES + PIXEL_BYTES * pixels(classes) if can_plot() else 0

    @property
    def _kept_sets(self) -> list[Dataset | Stream]:
        """What features may be kept of: what is evaluated, and what is trained on unless it is augmented."""
        if self.val is None:
            return [self.data]
        return [self.val] if self.config.augment else [self.data, self.val]

    @property
    def _why_whole(self) -> str:
        """Why a batch cannot be divided, as a clause; empty where it can."""
        if self.manifest.buffers:
            return f"BatchNorm '{self.manifest.buffers[0].layer}' trains on the statistics of a whole batch"
        if self.manifest.loss.scalar:
            return f"the model's loss '{self.manifest.loss.output}' is one number for a whole batch"
        return ""

    def _require_possible(self) -> None:
        """ConfigError where memory is not known, or batches cannot be chosen."""
        reason = why_no_estimate(self.manifest, self.config.provider)
        if not reason and self.processes > 1:
            reason = "several processes train together, whose batches are one"
        if not reason and isinstance(self.data, Stream):
            reason = f"the batches of {self.data.source} are made by code"
        if reason:
            raise ConfigError(
                f"memory_budget is {self.config.memory_budget}, but {reason}. Leave it out, and set batch_size and "
                "accumulate yourself."
            )

    def _nothing_fits(self, budget: int, smallest: TrainConfig, least: MemoryEstimate) -> str:
        """Why the budget is refused, where even what takes the least, `smallest`, takes `least`."""
        size, again = smallest.batch_size or 1, "recomputed activations and " if smallest.recomputes else ""
        batches = f"{again}batches of {size} row{'s' if size > 1 else ''}"
        whole = f", which cannot be divided because {self._why_whole}" if self._why_whole else ""
        return (
            f"memory_budget {size_text(budget)} is too small: with {batches}{whole} the run takes {least.line}. "
            f"Give it {size_text(least.total)}, or {self._ways_out(least)}."
        )

    def _ways_out(self, least: MemoryEstimate) -> str:
        """What would need less than what needs the least here, by what takes the most."""
        if least.parts.get(ACTIVATIONS, 0) <= least.total // 3:
            return "train fewer parameters (onnxft export --method head or lora)"
        if not self.manifest.recomputes():
            return "keep fewer activations (onnxft export --recompute, or train less of the model with --method last:K)"
        if self.config.recompute == "off":
            return "keep fewer activations (recompute auto instead of off)"
        return "train less of the model (onnxft export --method last:K)"


def largest(sizes: Sequence[T], fits: Callable[[T], bool]) -> T | None:
    """The largest of descending `sizes` that fits; None where none does.

    The first is tried by itself: it may need no accumulators, which the others have. Of these smaller ones need less.
    """
    if fits(sizes[0]):
        return sizes[0]
    low, high = 1, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(sizes[middle]) else (middle + 1, high)
    return sizes[low] if low < len(sizes) else None
