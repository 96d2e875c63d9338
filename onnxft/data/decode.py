"""Reading pictures: every kind of pixel that Pillow knows becomes bytes in a stated way, or is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxft.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Pixels of the largest picture that is decoded, Pillow's own limit: 256 MiB of RGB."""
_RUNS_PROGRAMS_OR_STUBS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "PDF"}


def pillow() -> Any:
    """The module PIL.Image; DataError where Pillow is missing."""
    try:
        from PIL import Image
    except ModuleNotFoundError as err:
        raise DataError(
            f"pictures are read with Pillow, and '{err.name}' is not installed: pip install 'onnxft[images]'."
        ) from err
    return Image


@cache
def picture_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that Pillow decodes by itself, without other programs."""
    image = pillow()
    image.init()
    formats = set(picture_formats())
    return frozenset(suffix for suffix, name in image.registered_extensions().items() if name in formats)


@cache
def picture_formats() -> tuple[str, ...]:
    """Names of those formats."""
    image = pillow()
    image.init()
    return tuple(name for name in image.OPEN if name not in _RUNS_PROGRAMS_OR_STUBS)


def header(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as it is stored, from its header alone.

    Raises:
        DataError: it is missing, no picture, or larger than MAX_PIXELS.
    """
    with _opened(path) as picture:
        return picture.height, picture.width


def decode(path: Path, mode: str) -> Image:
    """The picture of a file, upright, in `mode` (L or RGB).

    Raises:
        DataError: it is missing, damaged, too large, or of a kind that has no fixed range; names the file.
    """
    with _opened(path) as picture:
        try:
            picture.load()
            turned = upright(picture)
        except Exception as err:  # decoders of damaged files raise whatever comes
            raise _unreadable(path, err) from err
        try:
            return in_mode(turned, mode)
        except DataError as err:
            raise DataError(f"'{path}' {err}.") from err


def upright(picture: Image) -> Image:
    """The picture turned as its EXIF data says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _opened(path: Path) -> Any:
    image = pillow()
    limit = f"{MAX_PIXELS:,} pixels"
    try:
        picture = image.open(path, formats=picture_formats())
    except FileNotFoundError:
        raise DataError(f"there is no picture '{path}'.") from None
    except (image.DecompressionBombError, image.DecompressionBombWarning) as err:
        raise DataError(f"'{path}' has more than {limit}: make it smaller.") from err
    except Exception as err:  # readers of damaged files raise whatever comes
        raise _unreadable(path, err) from err
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise DataError(f"'{path}' has {picture.height} × {picture.width}, more than {limit}: make it smaller.")
    return picture


def _unreadable(path: Path, err: Exception) -> DataError:
    reason = str(err).splitlines()[0] if str(err) else type(err).__name__
    return DataError(f"the picture '{path}' cannot be read: {reason}. Remove it or replace it.")


def in_mode(picture: Image, mode: str) -> Image:
    """The picture in bytes of `mode`, L or RGB; a DataError without the picture's name where that is not possible."""
    if picture.mode == mode:
        return picture
    if picture.mode in ("I", "F"):
        raise DataError("has pixels of 32 bits, whose range is not known: save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint32)
        picture = pillow().fromarray(((wide + 128) // 257).astype(np.uint8))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        picture = pillow().alpha_composite(pillow().new("RGBA", above.size, (0, 0, 0, 255)), above)
    try:
        return picture.convert(mode)
    except ValueError as err:
        raise DataError(f"has the colour mode {picture.mode}, which Pillow does not convert to {mode}") from err
