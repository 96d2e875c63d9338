"""Event files for TensorBoard, through tensorboardX, which needs neither torch nor tensorflow."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from onnxft.errors import ConfigError
from onnxft.training.progress import Progress


def require_tensorboard() -> None:
    """ConfigError where tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "tensorboard is asked for, but tensorboardX is not installed. Leave it out, or `pip install "
            "onnxft[tensorboard]`."
        )


class EventFiles(Progress):
    """The scalars of a run by the number of updates: `step/loss` and `step/lr`, and each epoch's row as `epoch/...`."""

    def __init__(self, directory: Path, step: int = 0, *, known: bool = False) -> None:
        """A new file in `directory`, which makes TensorBoard forget what earlier ones have after `step`.

        Args:
            directory: of the run.
            step: updates made before a resume.
            known: whether earlier files have the row of that step.
        """
        from tensorboardX import SummaryWriter

        # Files are named by the second: without the suffix, a quick resume would overwrite what it goes on from.
        self._writer = SummaryWriter(str(directory), purge_step=step + known, filename_suffix=f".{step + known}")
        self._step = step

    def step(self, batches: int, rows: int, loss: float, lr: float) -> None:
        """Loss and rate of an update."""
        self._step += 1
        self._writer.add_scalar("step/loss", loss, self._step)
        self._writer.add_scalar("step/lr", lr, self._step)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Every column of an epoch, on the disk before its checkpoint: nothing before a checkpoint is missing."""
        for name, value in row.items():
            if name not in ("epoch", "step") and math.isfinite(value):
                self._writer.add_scalar(f"epoch/{name}", value, int(row["step"]))
        self._writer.flush()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left and close."""
        self._writer.close()
