"""What a session hands on: the inference model, and adapters, which it takes too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from onnxft.arrays import Array, Arrays
from onnxft.manifest import Manifest
from onnxft.runtime.adapters.adapter import read_adapter, write_adapter
from onnxft.runtime.artifact import check_parameters
from onnxft.runtime.inference import write_inference_model


class Exporting(ABC):
    """The part of a `TrainSession` that writes and reads files for others."""

    directory: Path
    """Of the artifact."""
    manifest: Manifest

    @abstractmethod
    def set_parameters(self, values: Arrays) -> None:
        """Replace trained parameters and running statistics."""

    @abstractmethod
    def values(self) -> dict[str, Array]:
        """Parameters and running statistics."""

    def export_model(self, path: str | Path, values: Arrays | None = None) -> None:
        """Write the inference model with the current weights, adapters merged; loadable by any ONNX Runtime.

        Args:
            path: `model.onnx`, say.
            values: parameters and running statistics in the place of the session's own.

        Raises:
            ArtifactError: `values` do not fit.
        """
        write_inference_model(self.directory, self.manifest, self._given(values), Path(path))

    def export_adapter(self, path: str | Path, values: Arrays | None = None) -> str:
        """Write adapters and all else that is trained as a folder for peft, with a `.onnx_adapter` for ONNX Runtime.

        That is for the artifact's graph `infer_adapter.onnx`, in a session that runs without an IO binding: with one
        ONNX Runtime ignores adapters. `values` as for `export_model`.

        Returns:
            Why peft cannot have it; "" where it can.

        Raises:
            ArtifactError: the artifact has no adapter, or the folder holds something else.
            ProviderError: this onnxruntime has no adapters.
        """
        return write_adapter(self.directory, self.manifest, self._given(values), Path(path))

    def _given(self, values: Arrays | None) -> Arrays:
        """The session's values, but for those that are given."""
        return self.values() if values is None else {**self.values(), **check_parameters(self.manifest, values)}

    def load_adapter(self, path: str | Path) -> None:
        """Replace parameters by those of a folder of peft or a `.onnx_adapter` file.

        Raises:
            ArtifactError: it is none, or does not fit; nothing is changed then.
        """
        values, _ = read_adapter(Path(path), self.manifest)
        self.set_parameters(values)
