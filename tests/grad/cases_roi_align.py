"""Cases of RoiAlign: torch itself has no such function, so its four pixels are read by indices."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from torch.nn import functional

ROIS = np.array(
    [[0.3, 0.4, 4.1, 3.2], [1.2, -0.9, 3.3, 2.1], [-3.5, 1.1, 6.9, 5.8], [2.2, 1.3, 2.7, 1.6], [0, 0, 5, 4]]
)
PICTURES = np.array([1, 0, 1, 0, 1])


def coordinates(rois, axis, bins, samples, scale, half_pixel):
    """(regions, bins * samples)"""
    start, end = rois[:, axis] * scale - 0.5 * half_pixel, rois[:, axis + 2] * scale - 0.5 * half_pixel
    length = end - start if half_pixel else (end - start).clamp(min=1)
    return start[:, None] + length[:, None] * (torch.arange(bins * samples) + 0.5) / (bins * samples)


def corners(x, ys, xs):
    """w * x of the four pixels around each sample: (regions, channels, rows, columns) for each"""
    height, width = x.shape[2:]
    near = ((ys >= -1) & (ys <= height))[:, :, None] & ((xs >= -1) & (xs <= width))[:, None, :]
    ys, xs = ys.clamp(0, height - 1), xs.clamp(0, width - 1)
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = ys.long() + dy, xs.long() + dx
            v, w = 1 - (ys - i).abs(), 1 - (xs - j).abs()
            pixels = x[
                torch.arange(len(x))[:, None, None],
                :,
                i.clamp(max=height - 1)[:, :, None],
                j.clamp(max=width - 1)[:, None],
            ]
            yield pixels.permute(0, 3, 1, 2) * (v[:, :, None] * w[:, None, :] * near)[:, None]


def roi_align(x, bins, samples, scale=1.0, half_pixel=True, rois=ROIS, note=""):
    def torch_align(x, rois, pictures):
        ys = coordinates(rois, 1, bins[0], samples, scale, half_pixel)
        xs = coordinates(rois, 0, bins[1], samples, scale, half_pixel)
        return functional.avg_pool2d(sum(corners(x[pictures], ys, xs)), samples)

    attrs = {
        "output_height": bins[0], "output_width": bins[1], "sampling_ratio": samples, "spatial_scale": scale,
        "coordinate_transformation_mode": "half_pixel" if half_pixel else "output_half_pixel",
    }  # fmt: skip
    return Case("RoiAlign", (x, rois, PICTURES), torch_align, attrs, note=note, frozen=(1,), batch=(0,))


CASES = [
    roi_align((2, 3, 4, 5), (2, 3), 2),
    roi_align((2, 3, 4, 5), (3, 1), 1),
    roi_align((2, 3, 4, 5), (2, 3), 3, half_pixel=False),
    roi_align((2, 3, 4, 5), (1, 2), 2, scale=0.5, rois=2 * ROIS),
]
