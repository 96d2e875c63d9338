"""The protocol behind `TrainSession`: all that the loop, the checkpoints and the benchmark know of an engine.

An engine gets complete batches: every array has the fixed batch size, the right element type, and
random inputs and sample weights are there. Checking, padding and drawing masks is done before it
(`runtime/session.py`), arithmetic behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from onnxft.arrays import Array, Arrays
from onnxft.manifest import Manifest
from onnxft.runtime.loss_scale import LossScale

_NAMED = 5
"""Nodes of a fallback that are named in a line."""


@dataclass(frozen=True)
class Hyper:
    """What one update takes besides gradients. Keys of `lr` and `weight_decay` are parameter groups."""

    lr: dict[str, float]
    weight_decay: dict[str, float]
    step: int
    """1 for the first update."""
    max_norm: float = float("inf")
    max_value: float = float("inf")

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped before the update."""
        return self.max_norm != float("inf") or self.max_value != float("inf")


@dataclass(frozen=True)
class Sums:
    """Loss, weight and metrics of one batch as sums; read from the device when asked for."""

    read: Callable[[], tuple[float, float, dict[str, float]]]
    """() -> loss sum, weight sum, {metric: sum}"""


@dataclass(frozen=True)
class Evaluation:
    """Result of the evaluation graph on one batch (padding rows still in it)."""

    loss_sum: float
    weight_sum: float
    metrics: dict[str, float]
    """{metric: sum}"""
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Placement:
    """What was asked for and what runs."""

    requested: str
    obtained: str
    nodes: dict[str, dict[str, int]] = field(default_factory=dict)
    """{graph role: {provider: number of nodes or fused subgraph nodes}}; empty where the runtime cannot tell.

    Where a dimension has several sizes, those of the session stand behind the role: `train sequence=32`."""
    fallback: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """{graph role: {another provider than the one obtained: its nodes, as `name (type)`}}"""
    precision: str = "float32"
    """That of the multiplications."""
    device: int = 0
    """Index among the provider's devices."""
    reason: str = ""
    """Why this provider was obtained, where `auto` was asked for."""
    options: dict[str, str] = field(default_factory=dict)
    """Provider options that were set."""
    versions: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What runs where, in words: the provider, then each graph and the nodes that fell back."""
        found = f"{self.requested} -> {self.obtained}, {self.precision}"
        said = [f"{found} ({self.reason})" if self.reason else found]
        for role, nodes in self.nodes.items():
            parts = []
            for name, count in nodes.items():
                fallen = self.fallback.get(role, {}).get(name, ())
                more = ", ..." if len(fallen) > _NAMED else ""
                names = f": {', '.join(fallen[:_NAMED])}{more}" if fallen else ""
                parts.append(f"{count} node{'s' if count > 1 else ''} on {name}{names}")
            said.append(f"{role}: {'; '.join(parts)}")
        return said


class Engine(Protocol):
    """One open training run on one provider."""

    manifest: Manifest
    batch_size: int
    sizes: tuple[Mapping[str, int], ...]
    """Each {symbolic dimension: its size} that a batch may have, the batch included; the largest first."""
    supports_weights: bool
    """Whether rows can be weighted, and so a short batch padded."""
    weights_in_training: bool
    """Whether that holds for training too: not where BatchNorm takes the statistics of the batch."""
    loss_scale: LossScale
    """Of float16; other precisions leave it as it is."""

    def features(self, batch: Arrays) -> dict[str, Array]:
        """What the trunk computes of a whole batch's inputs; only where the manifest has features."""
        ...

    @property
    def placement(self) -> Placement:
        """What was asked for and what runs."""

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory of the process that computes; None where the system does not tell."""

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on one batch."""

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of the batch's weighted loss sum to the accumulators."""

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators, divided by their weight sum; they are empty then.

        In float16 it is left out where they are not finite, and counted in `loss_scale`.
        """

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the weighted loss sum and the weight sum; accumulators are left as they were."""

    def evaluate(self, batch: Arrays) -> Evaluation:
        """Loss and outputs in inference behaviour."""

    def parameters(self, *, copy: bool = True) -> dict[str, Array]:
        """Copies of the trained parameters; without `copy`, where that can be, what the next step writes over."""

    def set_parameters(self, values: Arrays) -> None:
        """Replace the named parameters (shapes and types already checked)."""

    def parameter_vector(self, *, trainable_only: bool) -> Array:
        """All parameters in one float32 vector, see `onnxft.runtime.parameter_vector`; else the frozen ones too.

        Raises:
            ConfigError: they are not all float32, or frozen ones cannot be read.
        """

    def set_parameter_vector(self, vector: Array, *, trainable_only: bool) -> None:
        """Replace what `parameter_vector` gives; ArtifactError where it does not fit, and nothing is changed then."""

    def buffers(self) -> dict[str, Array]:
        """Copies of the trained running statistics."""

    def set_buffers(self, values: Arrays) -> None:
        """Replace the named running statistics (shapes and types already checked)."""

    def state(self, *, copy: bool = True) -> dict[str, Array]:
        """The optimizer state, keyed `parameter/slot`; `copy` as for `parameters`."""

    def set_state(self, values: Arrays) -> None:
        """Replace the whole optimizer state."""

    def average(self, weight: float) -> None:
        """average + weight (parameter - average) for each parameter; the first call copies the parameters."""

    @property
    def has_averages(self) -> bool:
        """Whether `average` was called, or averages were set."""
        ...

    def averages(self, *, copy: bool = True) -> dict[str, Array]:
        """The averages, empty before the first `average`; `copy` as for `parameters`."""

    def set_averages(self, values: Arrays) -> None:
        """Replace the averages of all parameters (shapes and types already checked); an empty mapping forgets them."""

    def show_averages(self, shown: bool) -> None:
        """Whether `evaluate` and `parameters` read the averages in the place of the parameters."""

    def close(self) -> None:
        """Release sessions and buffers."""
