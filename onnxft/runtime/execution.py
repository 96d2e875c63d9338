"""Where graphs run, and how: what is asked for, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from onnxft.errors import ConfigError, near
from onnxft.manifest import Precision

__all__ = ["PRECISIONS", "Execution", "Precision"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Execution:
    """A request for an execution provider; ConfigError where a value is out of range."""

    provider: str = "cpu"
    """Name as in `onnxft.runtime.providers.PROVIDERS`."""
    precision: Precision = "float32"
    device: int | None = None
    """Index among the provider's devices; None: its first."""
    threads: int | None = None
    """Threads inside an operator; None leaves it to the runtime."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Provider options over the table's."""
    strict: bool = False
    """Whether nodes on another provider than the one asked for are an error."""
    recompute: bool = False
    """Whether training graphs compute activations again for the backward pass, of an artifact that has both kinds."""

    def __post_init__(self) -> None:
        for name, value, least in (("device", self.device, 0), ("threads", self.threads, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"there is no precision '{self.precision}'.{near(self.precision, PRECISIONS)}")
