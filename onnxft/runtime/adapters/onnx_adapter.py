"""Adapters as ONNX Runtime reads them: a `.onnx_adapter` file, for the artifact's graph `infer_adapter`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError, ProviderError

_VERSION = 1


def write_onnx_adapter(path: Path, values: Arrays, identity: str) -> None:
    """Write {input of `infer_adapter`: value}.

    Raises:
        ProviderError: this runtime has no adapters.
        OSError: the file cannot be written.
    """
    import onnxruntime as ort

    adapter = _format()()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_number(identity))
    adapter.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
    )
    try:
        adapter.export_adapter(str(path))
    except RuntimeError as err:
        raise OSError(errno.EIO, str(err)) from err


def read_onnx_adapter(path: Path, name: str, identity: str) -> dict[str, Array]:
    """{parameter: value} of an adapter.

    Args:
        path: of the file.
        name: of the artifact, for messages.
        identity: of the model.

    Raises:
        ArtifactError: there is no such file, it is damaged, or it was not written for this model.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no adapter '{path}'. Name a folder of peft, or a .onnx_adapter file.")
    try:
        adapter = _format().read_adapter(str(path))
        values = {key: np.array(value.numpy()) for key, value in adapter.get_parameters().items()}
        version = adapter.get_model_version()
    except (RuntimeError, ValueError) as err:
        raise ArtifactError(f"the adapter '{path}' is damaged: {err}.") from err
    if version != _number(identity):
        raise ArtifactError(
            f"the adapter '{path}' was not written for '{name}': frozen weights, layers, rank or scale were others. "
            "Export the model as it was exported for it."
        )
    return values


def _format() -> Any:
    import onnxruntime as ort

    made = getattr(ort, "AdapterFormat", None)
    if made is None:
        raise ProviderError(f"onnxruntime {ort.__version__} has no adapters. Take 1.20 or newer to write or read one.")
    return made


def _number(identity: str) -> int:
    """The first 31 bits: the format has room for a number alone."""
    return int(identity[:8], 16) >> 1
