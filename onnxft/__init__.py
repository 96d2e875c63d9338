"""Fine-tune PyTorch and ONNX models through ONNX on whatever hardware ONNX Runtime can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

__all__ = ["TrainSession", "__version__", "bench", "export", "find_lr", "prepare", "train"]

if TYPE_CHECKING:
    from onnxft.api import TrainSession, bench, export, find_lr, prepare, train


def __getattr__(name: str) -> Any:
    """Load the interface when it is first used, so that `onnxft --help` pays for none of it."""
    if name in __all__:
        from onnxft import api

        return getattr(api, name)
    raise AttributeError(f"module 'onnxft' has no attribute {name!r}")
