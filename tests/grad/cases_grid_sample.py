"""Cases of GridSample: every mode and padding, grids inside and outside, and points on pixels and borders."""

from __future__ import annotations

import numpy as np
from checking import Case, Range
from torch.nn import functional


def grid_sample(x, grid, mode="bilinear", padding="zeros", align=0, note="", exempt=""):
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    function = lambda x, grid: functional.grid_sample(x, grid, mode, padding, bool(align))  # noqa: E731
    return Case("GridSample", (x, grid), function, attrs, note=note, exempt=exempt, batch=(0, 1))


def on_pixels(height, width, align):
    """Points on every pixel, on the borders -1 and 1, and a pixel beyond them; some of them twice."""

    def along(size):
        pixels = np.arange(-1, size + 1)
        inner = 2 * pixels / (size - 1) - 1 if align else (2 * pixels + 1) / size - 1
        return np.concatenate([inner, [-1, 1, inner[1]]])

    y, x = np.meshgrid(along(height), along(width), indexing="ij")
    return np.tile(np.stack([x, y], axis=-1), (2, 1, 1, 1))


CASES = [
    *(
        grid_sample((2, 3, 4, 5), Range((2, 3, 7, 2), -2.6, 2.4), mode, padding, align)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    grid_sample((2, 3, 4, 5), Range((2, 3, 7, 2), -0.7, 0.7), note="inside"),
    grid_sample((2, 3, 1, 5), Range((2, 3, 2, 2), -1.4, 1.4), padding="reflection", align=1, note="one row"),
    grid_sample((2, 1, 3, 2), Range((2, 1, 40, 2), -0.9, 0.9), note="many points on a pixel"),
    *(
        # The sizes are powers of two (or one more), so that the points are exactly on the pixels.
        grid_sample((2, 3, *size), on_pixels(*size, align), mode, padding, align, exempt="a tie or a bound")
        for mode in ("bilinear", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align, size in ((0, (4, 8)), (1, (3, 5)))
    ),
]
