"""Changed pictures for training: each name of `--augment` is one random change, drawn by (seed, epoch, row) alone.

    flip    left and right exchanged, in half of the rows
    vflip   top and bottom exchanged, in half of the rows
    crop    a part of 25 to 100 % of the area and an aspect ratio of 3:4 to 4:3, resized to the model's input
            instead of the whole picture
    color   brightness, contrast and saturation each times 0.6 to 1.4
    rotate  by -15 to 15 degrees about the middle; the corners are black

The changes are Pillow's (ImageOps, ImageEnhance, transform), with numbers drawn here: it is well kept, light, and reads
the pictures anyway. Of the libraries made for this, torchvision and kornia need torch, which the run half does without;
albumentations is no longer kept, and its successor is under the AGPL; imgaug and Augmentor had no release for years.
Libraries with a generator of their own draw in the order of the calls, too, so that a resumed run would differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxft.data.decode import pillow
from onnxft.data.preprocess import Preprocess
from onnxft.errors import ConfigError, near

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("flip", "vflip", "crop", "color", "rotate")
"""In the order of the draws: a new one goes to the end, so that those of the others stay."""
_AREA = (0.25, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_STRENGTH = (0.6, 1.4)
_DEGREES = (-15.0, 15.0)
_STREAM = 1 << 63
"""Sets the draws apart from those of the order of the rows, whose key is (seed, epoch)."""


@dataclass(frozen=True)
class Augment:
    """Random changes of pictures."""

    names: tuple[str, ...]
    seed: int

    @classmethod
    def make(cls, names: Sequence[str], seed: int) -> Augment:
        """Raises ConfigError for an unknown name."""
        for name in names:
            if name not in NAMES:
                raise ConfigError(f"unknown augmentation '{name}'.{near(name, NAMES)}")
        return cls(tuple(n for n in NAMES if n in names), seed)

    @property
    def reads_whole(self) -> bool:
        """Whether the picture is needed as it was before it was resized."""
        return "crop" in self.names

    def __call__(self, picture: Image, preprocess: Preprocess, *, epoch: int, row: int) -> Image:
        """The changed picture in the size of the model's input.

        `picture` is the decoded one if `reads_whole`, else it has that size already.
        """
        draws = {name: self._draws(name, epoch, row) for name in self.names}
        if "crop" in draws:
            height, width = preprocess.size
            box = _part(draws["crop"], picture.height, picture.width)
            picture = picture.resize((width, height), preprocess.filter, box=box)
        transpose = pillow().Transpose
        if "flip" in draws and draws["flip"].random() < 0.5:
            picture = picture.transpose(transpose.FLIP_LEFT_RIGHT)
        if "vflip" in draws and draws["vflip"].random() < 0.5:
            picture = picture.transpose(transpose.FLIP_TOP_BOTTOM)
        if "rotate" in draws:
            picture = picture.rotate(draws["rotate"].uniform(*_DEGREES), pillow().Resampling.BILINEAR)
        return _coloured(picture, draws["color"]) if "color" in draws else picture

    def _draws(self, name: str, epoch: int, row: int) -> np.random.Generator:
        place = NAMES.index(name)
        key = np.array([self.seed, _STREAM + epoch], np.uint64)  # a list of both would be rounded to float64
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, row, place]))


def _part(draws: np.random.Generator, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a part of the picture; the aspect ratio gives way where the part would not fit."""
    area = draws.uniform(*_AREA) * height * width
    aspect = math.exp(draws.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
    part_width = min(math.sqrt(area * aspect), width)
    part_height = min(area / part_width, height)
    part_width = min(area / part_height, width)
    left, top = draws.random() * (width - part_width), draws.random() * (height - part_height)
    return left, top, min(left + part_width, width), min(top + part_height, height)


def _coloured(picture: Image, draws: np.random.Generator) -> Image:
    from PIL import ImageEnhance

    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        strength = draws.uniform(*_STRENGTH)
        if change is not ImageEnhance.Color or picture.mode == "RGB":  # grey has no saturation
            picture = change(picture).enhance(strength)
    return picture
