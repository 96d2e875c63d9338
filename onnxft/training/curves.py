"""`curves.png`: loss and metrics over the epochs, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(rows: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """A PNG with one panel for the losses and one for each metric; needs matplotlib.

    Args:
        rows: lines of results.csv, in order of their epochs.
        best_epoch: marked by a vertical line.
    """
    from matplotlib.figure import Figure

    columns = [c for c in rows[0] if c not in ("epoch", "step", "lr")]
    losses = [c for c in columns if c.split("_", 1)[-1] == "loss"]
    panels = [losses, *([c] for c in columns if c not in losses)]
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            axes.plot([r["epoch"] for r in rows], [r[name] for r in rows], marker=".", label=name)
        axes.axvline(best_epoch, color="0.7", linestyle=":", label=f"best epoch {best_epoch}")
        axes.set_xlabel("epoch")
        axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()
