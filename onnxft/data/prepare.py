"""Pictures in memory or files, as the batch of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.dataset import Batch
from onnxft.data.decode import decode, in_mode, pillow, upright
from onnxft.data.preprocess import picture_port, preprocess_for
from onnxft.errors import DataError
from onnxft.manifest import Manifest

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare(
    pictures: Sequence[str | Path | Image | Array], manifest: Manifest, preprocess: Mapping[str, Any] | None = None
) -> Batch:
    """A batch of pictures as the model was trained on: `session.predict(onnxft.prepare(["a.jpg"], session.manifest))`.

    Args:
        pictures: paths, pictures of Pillow, or uint8 arrays (height, width) or (height, width, 1, 3 or 4), RGB.
        manifest: of the artifact, whose `preprocessing` is applied.
        preprocess: keys over those, as in `--preprocess`.

    Returns:
        {input: (pictures, ...)}

    Raises:
        DataError: a picture cannot be read or is none.
        ConfigError: a key of `preprocess` does not fit.
    """
    if isinstance(pictures, str | Path):
        raise DataError(f"prepare takes a list of pictures: [{str(pictures)!r}].")
    transform = preprocess_for(manifest, preprocess)
    if not len(pictures):
        raise DataError("prepare was given no picture.")
    rows = []
    for place, picture in enumerate(pictures):
        where = f"'{picture}'" if isinstance(picture, str | Path) else f"picture {place}"
        decoded = decode(Path(picture), transform.mode) if isinstance(picture, str | Path) else _given(picture, where)
        try:
            rows.append(np.asarray(transform.sized(in_mode(decoded, transform.mode))))
        except DataError as err:
            raise DataError(f"{where} {err}.") from err
    return {picture_port(manifest).name: transform.arrays(np.stack(rows))}


def _given(picture: Any, where: str) -> Image:
    image = pillow()
    if isinstance(picture, image.Image):
        return upright(picture)
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(
            f"{where} has the shape {list(array.shape)} and type {array.dtype}; a picture is a path, a picture of "
            "Pillow or a uint8 array (height, width) or (height, width, channels)."
        )
    made: Image = image.fromarray(array)
    return made
