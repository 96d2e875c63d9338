"""Cases of Resize: what torch's interpolate has, and beyond it a matrix written down from the specification."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from torch.nn import functional


def placed(c, size, mode, nearest_mode, a, exclude_outside):
    """(position, weight) pairs of an output at coordinate `c`."""
    low = int(np.floor(c))
    if mode == "nearest":
        rounded = {
            "floor": np.floor(c),
            "ceil": np.ceil(c),
            "round_prefer_floor": np.ceil(c - 0.5),
            "round_prefer_ceil": np.floor(c + 0.5),
        }
        return [(int(rounded[nearest_mode]), 1.0)]
    if mode == "linear":
        return [(low, 1 - (c - low)), (low + 1, c - low)]

    def kernel(t):
        t = abs(t)
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a

    found = [(i, kernel(c - i)) for i in range(low - 1, low + 3) if not exclude_outside or 0 <= i < size]
    return [(i, weight / sum(w for _, w in found)) for i, weight in found]


def matrix_along(size, outputs, scale, region, mode, coordinates, nearest_mode, a, exclude_outside):
    """(size, outputs) by the formulas of the specification."""
    m = np.zeros((size, outputs))
    start, end = region
    for o in range(outputs):
        half_pixel = (o + 0.5) / scale - 0.5
        c = {
            "half_pixel": half_pixel,
            "half_pixel_symmetric": size / 2 * (1 - outputs / (scale * size)) + half_pixel,
            "pytorch_half_pixel": half_pixel if outputs > 1 else 0.0,
            "align_corners": o * (size - 1) / max(outputs - 1, 1),
            "asymmetric": o / scale,
            "tf_crop_and_resize": start * (size - 1) + o * (end - start) * (size - 1) / max(outputs - 1, 1)
            if outputs > 1
            else (start + end) / 2 * (size - 1),
        }[coordinates]
        if coordinates == "tf_crop_and_resize" and not 0 <= c <= size - 1:
            continue
        for i, weight in placed(c, size, mode, nearest_mode, a, exclude_outside):
            m[min(max(i, 0), size - 1), o] += weight
    return m


def by_matrix(x, scales=None, sizes=None, roi=None, axes=None, policy=None, note="", symbolic=True, exempt="", **attrs):
    """A case whose oracle is the product with `matrix_along` over each axis."""
    over = axes or range(len(x))
    regions = [(0, 1)] * len(over) if roi is None else list(zip(roi[: len(over)], roi[len(over) :], strict=True))
    options = {
        "mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor",
        "cubic_coeff_a": -0.75, "exclude_outside": 0, "extrapolation_value": 0.0,
    } | attrs  # fmt: skip
    if scales is None:
        factors = [wanted / x[axis] for axis, wanted in zip(over, sizes, strict=True)]
        if policy:
            factors = [{"not_larger": min, "not_smaller": max}[policy](factors)] * len(over)
        lengths = [int(factor * x[axis] + 0.5) for axis, factor in zip(over, factors, strict=True)]
    else:
        factors, lengths = scales, [int(factor * x[axis]) for axis, factor in zip(over, scales, strict=True)]

    def resized(v, *_):
        for axis, factor, length, region in zip(over, factors, lengths, regions, strict=True):
            m = matrix_along(
                x[axis], length, factor, region, options["mode"], options["coordinate_transformation_mode"],
                options["nearest_mode"], options["cubic_coeff_a"], options["exclude_outside"],
            )  # fmt: skip
            v = torch.movedim(torch.movedim(v, axis, -1) @ torch.tensor(m), -1, axis)
        return v

    attrs |= {"axes": list(axes)} if axes else {}
    attrs |= {"keep_aspect_ratio_policy": policy} if policy else {}
    return case(x, resized, scales, sizes, roi, attrs, note, symbolic, exempt)


def case(x, function, scales, sizes, roi, attrs, note="", symbolic=True, exempt=""):
    inputs = (
        x,
        None if roi is None else np.array(roi, np.float32),
        None if scales is None else np.array(scales, np.float32),
        None if sizes is None else np.array(sizes),
    )
    given = f"scales={scales}" if sizes is None else f"sizes={sizes}"
    note = f"{given} {note}".strip()
    return Case(
        "Resize", inputs, function, attrs, note=note, constant=(1, 2), batch=(0,) if symbolic else (), exempt=exempt
    )


def interpolated(x, scales=None, size=None, mode="nearest", align_corners=None, antialias=False, note="", **attrs):
    """A case whose oracle is torch's interpolate; scales and sizes are those of space."""
    rank = len(x) - 2
    options = {"mode": mode} if mode.startswith("nearest") else {"mode": mode, "align_corners": align_corners}
    options |= {"antialias": True} if antialias else {}
    factors = [float(f) for f in scales] if scales else None
    function = lambda v, *_: functional.interpolate(v, size, factors, **options)  # noqa: E731
    attrs["mode"] = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(mode, mode.partition("-")[0])
    attrs |= {"antialias": 1, "exclude_outside": 1} if antialias else {}
    if size:
        attrs["axes"] = list(range(2, rank + 2))
    return case(x, function, [1.0, 1.0, *factors] if scales else None, size, None, attrs, note)


FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
HALF = {"coordinate_transformation_mode": "half_pixel"}
CORNERS = {"coordinate_transformation_mode": "align_corners"}
CROP = {"coordinate_transformation_mode": "tf_crop_and_resize"}

CASES = [
    interpolated((2, 3, 4, 5), scales=[2, 3], note="repeats", **FLOOR),
    interpolated((2, 3, 4), scales=[3], note="repeats", **FLOOR),
    interpolated((2, 2, 3, 4, 2), scales=[2, 3, 2], note="repeats", **FLOOR),
    interpolated((2, 3, 4, 5), size=[8, 10], note="repeats", **FLOOR),
    interpolated((2, 3, 4, 5), size=[7, 3], **FLOOR),
    interpolated((2, 3, 6, 8), size=[3, 2], note="every second and fourth", **FLOOR),
    interpolated((2, 3, 4, 5), size=[8, 15], mode="nearest-exact", nearest_mode="round_prefer_ceil", **HALF),
    interpolated((2, 3, 5, 7), size=[8, 4], mode="nearest-exact", nearest_mode="round_prefer_ceil", **HALF),
    interpolated((2, 3, 6), scales=[2], mode="linear", **HALF),
    interpolated((2, 3, 4, 5), scales=[2, 3], mode="bilinear", **HALF),
    interpolated((2, 3, 4, 5), size=[7, 3], mode="bilinear", **HALF),
    interpolated((2, 3, 4, 5), size=[7, 3], mode="bilinear", align_corners=True, **CORNERS),
    interpolated((2, 3, 4, 5), size=[1, 6], mode="bilinear", align_corners=True, note="one row", **CORNERS),
    interpolated((2, 2, 3, 4, 5), size=[5, 3, 7], mode="trilinear", **HALF),
    interpolated((2, 3, 4, 5), size=[7, 9], mode="bicubic", **HALF),
    interpolated((2, 3, 6, 5), size=[4, 8], mode="bicubic", align_corners=True, **CORNERS),
    interpolated((2, 3, 8, 7), size=[3, 4], mode="bilinear", antialias=True, **HALF),
    *(
        by_matrix((2, 3, 4, 5), scales=[1.0, 1.0, 1.7, 0.7], coordinate_transformation_mode=mode, nearest_mode=rounding)
        for mode in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        by_matrix((2, 2, 4, 5), scales=[1.0, 1.0, 1.7, 0.7], mode=mode, coordinate_transformation_mode=coordinates)
        for mode in ("linear", "cubic")
        for coordinates in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric")
    ),
    by_matrix((2, 3, 4, 5), scales=[1.0, 1.0, 2.0, 3.0], nearest_mode="floor", note="no blocks", **HALF),
    by_matrix((2, 2, 5, 7), scales=[1.0, 1.0, 1.7, 0.7], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    by_matrix(
        (2, 3, 5, 7), sizes=[8, 1], axes=(2, 3), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    by_matrix(
        (2, 4, 3),
        scales=[1.5, 2.0],
        axes=(1, -1),
        mode="linear",
        note="axes from the end",
        exempt="onnx's own evaluator has no axes from the end",
    ),
    by_matrix((4, 3), sizes=[7, 5], mode="linear", note="every axis", symbolic=False),
    by_matrix((5,), scales=[2.0], note="one axis", symbolic=False),
    by_matrix((2, 4, 3, 5), sizes=[2, 6, 3, 8], mode="nearest", note="channels too", symbolic=False),
    by_matrix((2, 3, 4, 5), sizes=[9, 7], axes=(2, 3), policy="not_larger", mode="linear"),
    by_matrix((2, 3, 4, 5), sizes=[9, 7], axes=(2, 3), policy="not_smaller", mode="linear"),
    by_matrix((2, 3, 4, 5), sizes=[9, 7], axes=(2, 3), policy="not_smaller", nearest_mode="ceil"),
    by_matrix((2, 3, 4, 6), sizes=[7, 5], axes=(3, 2), policy="not_larger", mode="cubic"),
    *(
        by_matrix(
            (2, 3, 4, 5),
            sizes=[6, 3],
            axes=(2, 3),
            roi=[0.2, -0.3, 0.9, 1.1],
            extrapolation_value=0.0,
            mode=mode,
            **CROP,
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    by_matrix((2, 3, 4, 5), scales=[1.0, 1.0, 1.5, 2.0], roi=[0, 0, 0.2, 0, 1, 1, 0.9, 1], mode="linear", **CROP),
]
