"""A bidirectional GRU over the coefficients of a sound, with a head for nine speakers."""

from __future__ import annotations

import torch
from torch import nn

BATCH = 15


class Speakers(nn.Module):
    """GRU, mean over the steps that were recorded, dropout, linear layer."""

    def __init__(self, channels: int = 12, hidden: int = 48, speakers: int = 9) -> None:
        """Fresh weights."""
        super().__init__()
        self.gru = nn.GRU(channels, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * hidden, speakers)

    def forward(self, series: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 9) from series (batch, 12, steps) and mask (batch, 1, steps)."""
        states, _ = self.gru((series * mask).transpose(1, 2))
        mean = (states.transpose(1, 2) * mask).sum(2) / mask.sum(2)
        return self.head(self.dropout(mean))


def factory() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model and an example batch of 15 recordings."""
    torch.manual_seed(0)
    return Speakers(), {"series": torch.randn(BATCH, 12, 29), "mask": torch.ones(BATCH, 1, 29)}
