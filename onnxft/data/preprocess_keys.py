"""What a user may say about how pictures become rows.

The keys, in an artifact's `preprocessing` and as `--preprocess KEY=VALUE` over it (a Hugging Face processor is
translated to them at export):

    size           height,width of the model's input (one number: both)                [default: that of the input]
    resize         stretch: both sides to `size`; crop: to cover `size`, then its middle; a number: the shorter side to
                   it, height,width: stretched to it, then the middle of `size`; none: they have `size`        [stretch]
    interpolation  nearest, bilinear, bicubic, lanczos, box or hamming                                        [bilinear]
    color          RGB, BGR or L (grey)                                             [RGB for three channels, L for one]
    scale          factor of a byte                                        [1/255; 1 where the model itself takes bytes]
    mean, std      one number, or one a channel                                                                   [0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxft.errors import ConfigError, near

KEYS = ("size", "resize", "interpolation", "color", "scale", "mean", "std")
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers, which processors store as `resample`."""
RESIZES = ("stretch", "crop", "none")
COLORS = ("RGB", "BGR", "L")
_RULES = {"scale": "be one number other than 0", "std": "not be 0"}


def parse(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys in their types, from a command line (text) or from a manifest (JSON).

    Raises:
        ConfigError: a key is unknown, or a value is none of its kind.

    >>> parse({"size": "24,32", "mean": [0.5], "color": "BGR"})
    {'size': (24, 32), 'mean': (0.5,), 'color': 'BGR'}
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in KEYS:
            raise ConfigError(f"unknown preprocess key '{key}'.{near(key, KEYS)}")
        match key:
            case "size":
                found[key] = _two(_whole(key, value))
            case "resize":
                found[key] = value if value in RESIZES else _whole(key, value)
                if isinstance(found[key], tuple) and len(found[key]) == 1:
                    found[key] = found[key][0]
            case "interpolation" | "color":
                known = INTERPOLATIONS if key == "interpolation" else COLORS
                if value not in known:
                    raise ConfigError(f"unknown preprocess {key} '{value}'.{near(str(value), known)}")
                found[key] = value
            case _:
                numbers = _numbers(key, value, "a number, or one a channel, such as 0.5,0.5,0.5")
                if (key != "mean" and 0 in numbers) or (key == "scale" and len(numbers) > 1):
                    raise ConfigError(f"preprocess {key} is {value!r}; it must {_RULES[key]}.")
                found[key] = numbers[0] if key == "scale" else numbers
    return found


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parsed values as JSON and YAML have them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _numbers(key: str, value: Any, what: str) -> tuple[float, ...]:
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        found = tuple(float(p) for p in (parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(n) for n in found):
        raise ConfigError(f"preprocess {key} is {value!r}; it must be {what}.")
    return found


def _whole(key: str, value: Any) -> tuple[int, ...]:
    what = "one or two whole numbers, such as 224 or 192,256 (height,width)"
    if key == "resize":
        what = f"{', '.join(RESIZES)} or {what}"
    numbers = _numbers(key, value, what)
    if len(numbers) > 2 or not all(n == int(n) and 1 <= n <= 65535 for n in numbers):
        raise ConfigError(f"preprocess {key} is {value!r}; it must be {what}.")
    return tuple(int(n) for n in numbers)


def _two(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[-1]
