"""The learning-rate range test: a sweep of the rate that says which one to train with (Smith, 2015).

N updates are made while the rate grows exponentially from a low to a high one; session and run keep nothing of them.
"Cyclical learning rates for training neural networks", https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxft.data.dataset import Batch
from onnxft.data.open import Data
from onnxft.errors import ConfigError, DivergedError
from onnxft.files import write_atomically
from onnxft.runtime.mpi import require_alone
from onnxft.runtime.session import TrainSession
from onnxft.training.config import TrainConfig
from onnxft.training.curves import as_png, can_plot
from onnxft.training.epoch import update
from onnxft.training.opening import asked_for, opened
from onnxft.training.plan import Plan
from onnxft.training.position import Position
from onnxft.training.progress import Progress
from onnxft.training.run_directory import next_directory, require_new
from onnxft.training.warm_start import begin_with

LOW, HIGH, UPDATES = 1e-7, 10.0, 100
_DIVERGED = 4.0
"""Multiple of the least smoothed loss at which the sweep stops."""
_MEMORY = 0.8
"""Share of the running mean that is kept at each update, when the sweep looks whether to stop."""
_SETTLED = 10
"""Updates before which the sweep stops only for a loss that is not finite."""


@dataclass(frozen=True)
class LrRange:
    """What a sweep found."""

    rates: NDArray[np.float64]
    """(N,) rates tried, as many as were before the loss diverged."""
    losses: NDArray[np.float64]
    """(N,) mean loss of the update's batches, before the update."""
    proposed: float | None
    """The rate to train with; None where no rate lowered the loss."""
    diverged: bool
    """Whether the sweep ended before its highest rate."""

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """(N,) mean of the losses around each."""
        return smooth(self.losses)


@dataclass(frozen=True)
class Sweep(Plan):
    """A plan whose rate grows exponentially from `low` to `high` over `number` updates."""

    low: float = LOW
    high: float = HIGH
    number: int = UPDATES

    def lr(self, step: int) -> float:
        """lr = low (high / low)^(step / (number - 1))"""
        return float(self.low * (self.high / self.low) ** (step / (self.number - 1)))

    def what_is_kept(self, position: Position) -> str:
        """A sweep keeps nothing."""
        return "nothing was written. Mend the data and make the range test again."


def find_lr(
    artifact: Path | str | None = None,
    data: Data | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    val: Data | None = None,
    directory: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[LrRange, Path]:
    """Sweep the rate over an artifact and data, and write lr_range.csv and, with matplotlib, lr_range.png.

    Args:
        artifact: as in `training.loop.run`.
        data: likewise.
        config: likewise; rate, schedule and warm-up are laid aside.
        val: likewise; it is checked and not used.
        directory: where the two files go, a new one; None: `runs/<artifact name>-lr-<n>`.
        progress: shows the sweep.

    Returns:
        What was found, and the directory.

    Raises:
        OnnxftError: whatever does not fit, as in `training.loop.run`.
    """
    place, manifest, asked = asked_for(artifact, data, config, val)
    effective = TrainConfig.from_mapping(asked)
    require_alone(effective.processes, "the range test")
    out = next_directory(Path("runs"), f"{manifest.name}-lr") if directory is None else Path(directory)
    require_new(out)
    with opened(place, manifest, effective, data, val) as start:
        plan = Plan.make(start.session, start.data, start.val, start.config)
        begin_with(start.session, start.config)
        found = sweep(start.session, plan, progress=progress)
    write_atomically(out / "lr_range.csv", to_csv(found))
    if can_plot():
        write_atomically(out / "lr_range.png", plot_lr_range(found))
    return found, out


def sweep(
    session: TrainSession,
    plan: Plan,
    *,
    low: float = LOW,
    high: float = HIGH,
    number: int = UPDATES,
    progress: Progress | None = None,
) -> LrRange:
    """Train with a growing rate until the loss diverges; afterwards `session` is as it was before.

    Args:
        session: an open session.
        plan: its data and options; the rate, the schedule and the average are laid aside.
        low: first rate.
        high: last rate.
        number: updates in which it grows.
        progress: shows the sweep.

    Raises:
        ConfigError: the range is empty, or there are fewer than 3 updates.
    """
    if not 0 < low < high or number < 3:
        raise ConfigError(f"a sweep of {number} updates from {low:g} to {high:g}: at least 3, and the rate must grow.")
    progress, position = progress or Progress(), Position({})
    own = {f.name: getattr(plan, f.name) for f in fields(Plan)} | {"config": replace(plan.config, ema=None)}
    growing = Sweep(**own, low=low, high=high, number=number)
    rates, losses, diverged = [], [], False
    with tempfile.TemporaryDirectory() as folder, progress:
        session.save_checkpoint(Path(folder) / "before")
        progress.begin_epoch(1, 1, number * plan.config.accumulate, 0)
        try:
            with closing(_groups(growing, position)) as groups:  # type: ignore[type-var]
                for group in groups:
                    position.loss_sum = position.weight_sum = 0.0
                    update(session, group, growing, position, progress)
                    rates.append(growing.lr(position.step - 1))
                    losses.append(position.loss_sum / position.weight_sum)
                    if diverged := _diverged(losses):
                        break
                    if position.step == number:
                        break
        except DivergedError:
            diverged = True
        finally:
            session.load_checkpoint(Path(folder) / "before")
    found = np.array(rates), np.array(losses)
    return LrRange(*found, propose(*found), diverged)


def _groups(plan: Plan, position: Position) -> Iterator[list[Batch]]:
    """The batches of updates, over the epochs of the plan again and again."""
    while True:
        with closing(plan.groups(position)) as groups:  # type: ignore[type-var]
            yield from groups
        position.epoch, position.batch = (position.epoch + 1) % len(plan.batches), 0


def _diverged(losses: list[float]) -> bool:
    """Whether the running mean is above 4 times its least."""
    if len(losses) < _SETTLED:
        return False
    mean, means = 0.0, []
    for t, loss in enumerate(losses, 1):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        means.append(mean / (1 - _MEMORY**t))
    return means[-1] > _DIVERGED * min(means) > 0


def smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value and its neighbours, a tenth of all values together; fewer at the ends, and as many each side.

    A running mean would lag behind, and so move the steepest place to higher rates.
    """
    N = len(losses)
    half = max(1, N // 20)
    sides = [min(half, i, N - 1 - i) for i in range(N)]
    return np.array([losses[i - side : i + side + 1].mean() for i, side in enumerate(sides)])


def propose(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float | None:
    """The rate where the smoothed loss falls steepest over log(rate), at most a tenth of the one where it is least.

    The steepest place is where training gains most; a tenth of the least is the customary distance from divergence.
    None where the loss falls by no more than twice its scatter: that much, noise alone falls too.
    """
    if len(rates) < 3:
        return None
    smoothed = smooth(losses)
    least = int(np.argmin(smoothed))
    falling = slice(0, least + 1)
    start = losses[: max(1, len(losses) // 10)].mean()
    if least == 0 or start - smoothed[least] <= 2 * np.std(losses[falling] - smoothed[falling]):
        return None
    slope = np.gradient(smoothed, np.log(rates))[falling]
    return float(min(rates[np.argmin(slope)], rates[least] / 10))


def to_csv(found: LrRange) -> bytes:
    """One row an update: its rate, its loss, the loss smoothed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "lr", "loss", "smoothed_loss"])
    columns = found.rates.tolist(), found.losses.tolist(), found.smoothed.tolist()
    writer.writerows([step, *map(repr, row)] for step, row in enumerate(zip(*columns, strict=True), 1))
    return text.getvalue().encode()


def plot_lr_range(found: LrRange) -> bytes:
    """A PNG with the loss over the rate; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.75", linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, color="C0", linewidth=2, label="smoothed")
    if found.proposed is not None:
        axes.axvline(found.proposed, color="C1", linestyle="--", label=f"proposed: {found.proposed:.2g}")
    if len(found.rates) < 2:
        axes.set_xlim(LOW, HIGH)
    axes.set_xscale("log")
    if len(found.losses):
        # What diverges at the end would flatten the part that matters.
        low, first = float(found.smoothed.min()), float(np.max(found.smoothed[: max(1, len(found.losses) // 2)]))
        axes.set_ylim(low - 0.1 * (first - low) - 1e-12, first + 0.5 * (first - low) + 1e-12)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return as_png(figure)
