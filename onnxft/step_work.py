"""What a training step of a model costs at least: counted at export, recorded in the manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """Operations and bytes of one part of a step."""

    flops: int = 0
    """Of its multiplications: two for each multiply-add."""
    bytes: int = 0
    """That its other operators read and write."""


@dataclass(frozen=True)
class StepWork:
    """What a training step of the model costs at least, whatever graph computes it; see `onnxft.step.work`."""

    forward: Amount
    data_gradients: Amount
    """Of the layers between the loss and the first trained one of each branch."""
    weight_gradients: Amount
    """Of the trained parameters."""

    @property
    def flops(self) -> int:
        """Of the whole step."""
        return self.forward.flops + self.data_gradients.flops + self.weight_gradients.flops

    @property
    def bytes(self) -> int:
        """Of the whole step."""
        return self.forward.bytes + self.data_gradients.bytes + self.weight_gradients.bytes
