"""From a picture to a row of the model's input: the one transform of training, evaluation and prediction.

    y = (scale * byte - mean) / std        with the keys of `preprocess_keys.py`

Channels lie first or last as in the model's input. Pictures are turned as their EXIF data says; of several frames the
first is taken; transparent parts are black; 16-bit grey is divided by 257; pixels of 32 bits are refused, for they have
no known range. Middles that are larger than the picture are filled with black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.decode import in_mode, pillow
from onnxft.data.preprocess_keys import parse, plain
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import BATCH, Manifest, Port
from onnxft.runtime.sizes import fixed_shape

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an array of `shape`; `make` checks the values."""

    size: tuple[int, int]
    """(height, width)"""
    color: str
    channel_axis: int | None
    """Axis of the channels in a row: 0 first, 2 last; None: a row is (height, width)."""
    dtype: str
    resize: str | int | tuple[int, int] = "stretch"
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def make(cls, given: Mapping[str, Any], shape: Sequence[int], dtype: str) -> Preprocess:
        """From the keys above, for rows of `shape`: (channels, height, width), (height, width, channels) or without.

        Raises:
            ConfigError: a key or value is unknown, or does not fit the shape.
        """
        values = parse(given)
        axis = _channel_axis(shape)
        channels = 1 if axis is None else shape[axis]
        sides = tuple(d for i, d in enumerate(shape) if i != axis)
        size = values.pop("size", sides)
        if size != sides:
            raise ConfigError(
                f"preprocess size is {size[0]},{size[1]}, the model takes pictures of {sides[0]},{sides[1]} "
                "(height,width). Leave size out, or export the model for it."
            )
        color = values.pop("color", "RGB" if channels == 3 else "L")
        if len(color) != channels:
            raise ConfigError(f"preprocess color {color} has {len(color)} channels, the model's input {channels}.")
        for key in ("mean", "std"):
            if len(values.get(key, (0,))) not in (1, channels):
                raise ConfigError(
                    f"preprocess {key} has {len(values[key])} values, the model's input {channels} channels."
                )
        if not np.issubdtype(np.dtype(dtype), np.floating):
            if dtype != "uint8" or {"scale", "mean", "std"} & values.keys():
                raise ConfigError(
                    f"the model's input has the element type {dtype}, to which pictures are not scaled: leave scale, "
                    "mean and std out for uint8, and give other types as .npz."
                )
            values["scale"] = 1.0
        return cls(size, color, axis, dtype, **values)

    def sized(self, picture: Image) -> Image:
        """The picture in `size`."""
        height, width = self.size
        if self.resize == "none":
            if (picture.width, picture.height) != (width, height):
                raise DataError(
                    f"has {picture.height} × {picture.width} pixels and not {height} × {width}, and resize is none"
                )
            return picture
        to = self._resized(picture.height, picture.width)
        picture = picture.resize((to[1], to[0]), self.filter)
        left, top = (to[1] - width) // 2, (to[0] - height) // 2
        return picture.crop((left, top, left + width, top + height))

    def sized_of(self, picture: Image, where: str) -> Image:
        """`sized`, with the picture's name in its errors."""
        try:
            return self.sized(picture)
        except DataError as err:
            raise DataError(f"{where} {err}.") from err

    @property
    def filter(self) -> Any:
        """Pillow's filter of that name."""
        return pillow().Resampling[self.interpolation.upper()]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the whole picture gets; the longer side is rounded down, as elsewhere."""
        if isinstance(self.resize, tuple):
            return self.resize
        if self.resize == "stretch":
            return self.size
        by_height = height <= width
        if isinstance(self.resize, str):
            by_height = self.size[0] * width >= self.size[1] * height
            to = self.size[0] if by_height else self.size[1]
        else:
            to = self.resize
        return (to, max(1, int(to * width / height))) if by_height else (max(1, int(to * height / width)), to)

    def arrays(self, bytes_: Array) -> Array:
        """(scale * byte - mean) / std in the model's layout, of bytes (n, height, width) or (n, height, width, 3)."""
        x = bytes_ if bytes_.ndim == 4 else bytes_[..., None]
        if self.color == "BGR":
            x = x[..., ::-1]
        if self.dtype != "uint8":
            mean, std = (np.asarray(v, np.float64) for v in (self.mean, self.std))
            x = x * np.asarray(self.scale / std, np.float32) - np.asarray(mean / std, np.float32)
        if self.channel_axis is None:
            x = x[..., 0]
        elif self.channel_axis == 0:
            x = np.moveaxis(x, 3, 1)
        return np.ascontiguousarray(x, self.dtype)

    @property
    def mode(self) -> str:
        """Pillow's mode of the decoded picture."""
        return "L" if self.color == "L" else "RGB"

    def __call__(self, picture: Image) -> Array:
        """The row of a decoded picture."""
        one: Array = self.arrays(np.asarray(self.sized(in_mode(picture, self.mode)))[None])[0]
        return one


def check_preprocessing(given: Mapping[str, Any], shapes: Sequence[Sequence[int | None]] = ()) -> dict[str, Any]:
    """The values as a manifest has them.

    Args:
        given: the keys of this module.
        shapes: of the model's inputs, None for an open dimension; where only one can be that of pictures, the values
            must fit it.

    Raises:
        ConfigError: a key is unknown, or a value is none of its kind or does not fit.
    """
    values = parse(given)
    pictures = [s for s in shapes if len(s) == 4]
    if len(pictures) == 1 and (row := [d for d in pictures[0][1:] if d is not None]) and len(row) == 3:
        Preprocess.make(given, row, "float32")
    return plain(values)


def _channel_axis(shape: Sequence[int]) -> int | None:
    if len(shape) == 3:
        for axis in (0, 2):
            if shape[axis] in (1, 3):
                return axis
    elif len(shape) == 2:
        return None
    raise ConfigError(
        f"rows of the shape {list(shape)} are no pictures: those have (channels, height, width) or (height, width, "
        "channels) with 1 or 3 channels, or (height, width). Give such inputs as .npz."
    )


def picture_port(manifest: Manifest, name: str | None = None) -> Port:
    """The input that takes pictures: the one of that name, or the only one of the model.

    Raises:
        DataError: the model has several inputs.
    """
    ports = [p for p in manifest.inputs if name is None or p.name == name]
    if len(ports) != 1:
        names = ", ".join(f"'{p.name}'" for p in ports)
        raise DataError(
            f"'{manifest.name}' has the inputs {names}, and a folder of pictures holds one. Use a table with columns "
            "(CSV, JSONL) or .npz."
        )
    return ports[0]


def preprocess_for(
    manifest: Manifest, given: Mapping[str, Any] | None = None, sizes: Mapping[str, int] | None = None,
    name: str | None = None,
) -> Preprocess:  # fmt: skip
    """The transform of a model's pictures: `given` keys over those of the manifest.

    Args:
        manifest: of the artifact.
        given: keys of this module.
        sizes: {symbolic dimension: its size}, where they differ from the artifact's.
        name: of the input, where the model has several.

    Raises:
        ConfigError: a key or value is unknown or does not fit the model's input.
    """
    port = picture_port(manifest, name)
    known = {BATCH: manifest.batch_size, **manifest.dimensions, **(sizes or {})}
    return Preprocess.make({**manifest.preprocessing, **(given or {})}, fixed_shape(port, known)[1:], port.dtype)
