"""`curves.png`: losses, metrics and learning rate over the epochs, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

_PANELS_IN_A_ROW = 4
_NAMES = {"loss": "training", "train": "training data, evaluated", "val": "validation"}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(rows: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """A PNG with one panel for the losses, one for each metric and one for the learning rate; needs matplotlib.

    Args:
        rows: lines of results.csv, in order of their epochs.
        best_epoch: marked by a vertical line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    titled = panels(list(rows[0]))
    down = -(-len(titled) // _PANELS_IN_A_ROW)
    across = -(-len(titled) // down)
    figure = Figure(figsize=(max(3.4 * across, 5), 2.6 * down + 0.4), layout="constrained")
    axes_of_all = figure.subplots(down, across, squeeze=False).flat
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) <= 25 else None
    shown = {}
    for axes, (title, columns) in zip(axes_of_all, titled.items(), strict=False):
        shown["best"] = axes.axvline(best_epoch, color="0.6", linestyle="--", linewidth=1)
        for column in columns:
            kind = column if column in ("loss", "lr") else column.split("_", 1)[0]
            color = {"loss": "tab:blue", "lr": "0.3"}.get(kind, "tab:orange")
            values = [row[column] if math.isfinite(row[column]) else math.nan for row in rows]
            shown[kind] = axes.plot(epochs, values, color=color, marker=marker, markersize=3, linewidth=1.4)[0]
        axes.set_title(title, fontsize=10)
        axes.set_xlim(-0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        if title == "learning rate":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", scilimits=(-2, 3))
            axes.yaxis.offsetText.set_fontsize(8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in axes_of_all[len(titled) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    named = {_NAMES[kind]: line for kind, line in shown.items() if kind in _NAMES}
    named[f"best epoch {best_epoch}"] = shown["best"]
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named), frameon=False, fontsize=9)
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """A figure of matplotlib as the bytes of a PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def panels(columns: Sequence[str]) -> dict[str, list[str]]:
    """{title: columns of results.csv}, the losses first and the rate last."""
    found: dict[str, list[str]] = {}
    for column in columns:
        if column not in ("epoch", "step", "lr"):
            title = "loss" if column == "loss" else column.split("_", 1)[1].replace("_", " ")
            found.setdefault(title, []).append(column)
    return {**found, "learning rate": ["lr"]}
