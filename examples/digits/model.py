"""The network of the digits example, from scratch and as the first run left it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

FIRST_RUN = Path("runs/digits-upright/weights/best.safetensors")


class DigitNet(nn.Module):
    """Convolution, pooling and dense layers for 28 × 28 grey pictures."""

    def __init__(self) -> None:
        """Set up the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.fc1 = nn.Linear(32 * 7 * 7, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (batch, 1, 28, 28) in 0 .. 1 -> logits (batch, 10)."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(image)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def scratch() -> tuple[nn.Module, torch.Tensor]:
    """A fresh network."""
    torch.manual_seed(0)
    return DigitNet(), torch.zeros(32, 1, 28, 28)


def tuned() -> tuple[nn.Module, torch.Tensor]:
    """The network with the weights of the first run, to be fine-tuned on other pictures."""
    model, example = scratch()
    model.load_state_dict(load_file(FIRST_RUN))
    return model, example
