"""Baselines that stand in several benchmarks of one model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from onnxft.benchmark.config import Side
from onnxft.benchmark.report import Row


@dataclass
class SharedBaselines:
    """Baselines that were measured in one benchmark and stand in others of the same model and batch too.

    They train from the source, and know nothing of kept features or of activations that are computed again.
    """

    folder: Path
    """Where their gradients lie, `SIDE.safetensors`."""
    rows: dict[str, Row] = field(default_factory=dict)
    """{side: its row, as yet compared with nothing}"""

    def add(self, row: Row, gradients: Path) -> None:
        """Take over a row that was measured."""
        self.rows[row.side.name] = row
        if gradients.is_file():
            shutil.copyfile(gradients, self.gradients(row.side))

    def gradients(self, side: Side) -> Path:
        """The file of a side's gradients."""
        return self.folder / f"{side.name.replace(':', '.')}.safetensors"
