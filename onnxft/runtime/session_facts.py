"""What a session tells of itself: sizes, what runs where, and what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxft.manifest import Manifest
from onnxft.runtime.engine import Engine, Placement
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.processes import Processes, Share
from onnxft.runtime.providers import AUTO


class SessionFacts:
    """The part of a `TrainSession` that answers and changes nothing."""

    manifest: Manifest
    processes: Processes
    recomputes: bool
    """Whether the backward pass computes activations again instead of reading kept ones."""
    _engine: Engine
    _reason: str
    """Why `auto` chose the provider; empty where it was named."""

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._engine.batch_size

    @property
    def dimensions(self) -> Mapping[str, int]:
        """{symbolic dimension: its size, or the largest of several}, the batch included."""
        return self._engine.sizes[0]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """{symbolic dimension: every size that a batch may have, ascending}, the batch included."""
        return {d: tuple(sorted({sizes[d] for sizes in self._engine.sizes})) for d in self.dimensions}

    @property
    def share(self) -> Share:
        """Which rows of a large batch this process computes."""
        return Share(self.processes.rank, self.processes.size, self.batch_size)

    @property
    def placement(self) -> Placement:
        """Which provider was asked for and what runs where."""
        placement = self._engine.placement
        return replace(placement, requested=AUTO, reason=self._reason) if self._reason else placement

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory of the process that computes; None where the system does not tell."""
        return self._engine.peak_bytes

    @property
    def supports_weights(self) -> bool:
        """Whether rows can be weighted in training, and so a short batch padded exactly."""
        return self._engine.weights_in_training

    @property
    def loss_scale(self) -> LossScale:
        """By what float16 gradients are scaled, and how many updates were left out: only the optimizer skips them."""
        return self._engine.loss_scale

    @property
    def supports_averages(self) -> bool:
        """Whether the artifact has the graph for `average`."""
        return "average" in self.manifest.graphs
