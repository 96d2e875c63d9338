"""Figures of matplotlib as SVG that stands inside an HTML page and follows its colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from onnxft.errors import ConfigError

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6d31", "#7f7f7f")
"""Of Okabe and Ito, told apart by colour-blind eyes, and two more; all are seen on white and on black."""
MARKERS = "osD^vPX*"
FAINT = "#8b949e"
_INK = "#010203"
"""Stands for the colour of the page's text."""
_LABEL_LENGTH = 26

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "path.simplify": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


def check() -> None:
    """Raise ConfigError unless matplotlib is there to draw with."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as err:
        raise ConfigError(
            f"the HTML page is drawn with matplotlib, which cannot be imported ({err}). "
            "Install it with `pip install onnxft[plot]`, or leave out --html."
        ) from err


def draw(name: str, title: str, size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    """The SVG element of a figure that `paint` fills; the same bytes for the same painting.

    Args:
        name: letters, unlike those of the other figures of the page, which share its identifiers.
        title: what a screen reader says.
        size: inches.
        paint: takes an empty Figure.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        # A name may hold letters that the font for measuring lacks; the browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        paint(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = re.sub(r"<!--.*?-->", "", file.getvalue()[file.getvalue().index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^<>]*>", lambda tag: _fitted(tag[0], name), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()


def standalone(element: str) -> str:
    """What `draw` made, as a file of its own: dark ink on white."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return element.replace("<svg", f'<svg {spaces} style="color:#1b2026;background:#fff"', 1) + "\n"


def _fitted(tag: str, name: str) -> str:
    """A tag for the page: HTML knows the name spaces, identifiers get a prefix, and ink is that of the page."""
    tag = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag)
    tag = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", tag)
    return tag.replace(_INK, "currentColor")


def short(text: str) -> str:
    """A name in one line that leaves room for the picture; what XML cannot hold is left out."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…"
