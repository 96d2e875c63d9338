"""What is checked when a session opens, and which engine runs its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.runtime.engine import Engine
from onnxft.runtime.execution import Execution
from onnxft.runtime.native import NativeEngine
from onnxft.runtime.processes import Processes, require_divisible
from onnxft.runtime.shared import SharedEngine
from onnxft.runtime.sizes import Sizes, check_dimensions, check_statistics, combined


def check_request(
    manifest: Manifest, seed: int, processes: Processes, batch_size: int | None, dimensions: Sizes
) -> None:
    """ConfigError where a session of the artifact cannot have these values; see `TrainSession`."""
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}.")
    if seed >= 2**63:
        raise ConfigError(f"seed is {seed}; it must be below 2**63.")
    check_dimensions(manifest, dimensions)
    require_divisible(manifest, processes)
    for sizes in combined(manifest, batch_size or manifest.batch_size, dimensions):
        check_statistics(manifest, sizes)


def open_engine(
    directory: Path, manifest: Manifest, asked: Execution, *, processes: Processes, **settings: Any
) -> Engine:
    """The engine of the artifact's generator, or of several processes; `settings` as those of `NativeEngine`."""
    if manifest.generator == "ort-training":
        from onnxft.runtime.ort_training.engine import OrtTrainingEngine

        return OrtTrainingEngine(directory, manifest, asked, **settings)
    if processes.size > 1:
        return SharedEngine(directory, manifest, asked, processes=processes, **settings)
    return NativeEngine(directory, manifest, asked, **settings)
