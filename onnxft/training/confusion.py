"""The confusion matrix of an evaluation, as a table and, where matplotlib is installed, as a picture."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxft.arrays import Array
from onnxft.manifest import Loss
from onnxft.training.metrics import confusion

MOST_DRAWN = 50
"""Classes up to which there is a picture: more cannot be read."""
_MOST_COUNTED = 1000
"""Classes up to which there is a table: a vocabulary squared is no help to anyone."""
_DPI = 110
_LONGEST_NAME = 24
_CORNER = "label / predicted"


@dataclass(frozen=True)
class Confusion:
    """Counts of (label, predicted class)."""

    counts: NDArray[np.int64]
    """(C, C): the row is the label, the column what was predicted."""
    names: tuple[str, ...]
    """Of the C classes."""

    @classmethod
    def of(cls, loss: Loss, reduced: Mapping[str, Array], classes: Sequence[str] = ()) -> Confusion | None:
        """The matrix of what `metrics.reduce` kept; None where a row is not one of at most 1000 classes.

        `classes` are the names, which numbers stand in for where there are not as many.
        """
        binary = loss.kind == "bce_with_logits" and loss.num_classes in (None, 1)
        count = 2 if binary else loss.num_classes
        if count is None or count > _MOST_COUNTED or reduced.get("predicted", np.empty((0, 0))).ndim != 1:
            return None
        names = tuple(classes) if len(classes) == count else tuple(map(str, range(count)))
        return cls(confusion(reduced["labels"], reduced["predicted"], count), names)

    def to_csv(self) -> bytes:
        """A row for each label, a column for each predicted class."""
        text = io.StringIO()
        # A name with a lone carriage return would end its line for whoever reads it.
        returns = any("\r" in name for name in self.names)
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
        writer.writerow([_CORNER, *self.names])
        writer.writerows([name, *row] for name, row in zip(self.names, self.counts.tolist(), strict=True))
        return text.getvalue().encode()

    @classmethod
    def from_csv(cls, content: bytes) -> Confusion:
        """What `to_csv` wrote."""
        head, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
        return cls(np.array([row[1:] for row in rows], np.int64), tuple(head[1:]))

    @property
    def can_be_drawn(self) -> bool:
        """Whether a picture of it could be read."""
        return len(self.names) <= MOST_DRAWN

    def to_png(self, title: str) -> bytes:
        """Counts as text over the share of the label's rows as colour; needs matplotlib."""
        from matplotlib.figure import Figure

        size = len(self.names)
        cell = _cell(size)
        side = size * cell
        # Only the cells fill the figure: the rest lies around it, and the picture is cut to what there is.
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0, 0, 1, 1))
        share = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        font = min(11.0, 72 * cell / max(len(str(self.counts.max())), 3))
        for (row, column), count in np.ndenumerate(self.counts):
            # Zeros between many classes would hide what is there.
            if count or size <= 10:
                color = "white" if share[row, column] > 0.55 else "0.15" if count else "0.6"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=font, color=color)
        names = [_short(name) for name in self.names]
        small = 10 if size <= 20 else 8
        axes.set_yticks(range(size), names, fontsize=small)
        axes.set_xticks(range(size), names, fontsize=small)
        if any(len(name) * 0.09 > cell for name in names):
            axes.set_xticks(range(size), names, rotation=90)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted", labelpad=8)
        axes.set_ylabel("label", labelpad=8)
        axes.set_title(title, fontsize=11, pad=10, loc="left")
        tall = min(side, 4)
        bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.2 / side, 1 - tall / side, 0.15 / side, tall / side)))
        bar.set_label("share of the label's rows")
        bar.outline.set_visible(False)
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks: a box is shown for it
            figure.savefig(png, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.2)
        return png.getvalue()


def pixels(classes: int) -> int:
    """Of the picture of so many classes; 0 where there is none."""
    return round((classes * _cell(classes) * _DPI) ** 2) if 0 < classes <= MOST_DRAWN else 0


def _cell(size: int) -> float:
    """Inches of the side of a cell."""
    return max(0.32, min(1.1, 9 / size))


def _short(name: str) -> str:
    """The name, long ones without their middle; a dollar would begin a formula."""
    if len(name) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        name = f"{name[:half]}…{name[1 - half :]}"
    return name.replace("$", r"\$")
