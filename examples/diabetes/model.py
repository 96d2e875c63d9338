"""A small network from ten measurements to one value."""

from __future__ import annotations

import torch
from torch import nn

BATCH = 16


def factory() -> tuple[nn.Module, torch.Tensor]:
    """The model and an example batch (16, 10)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 1))
    return model, torch.randn(BATCH, 10)
