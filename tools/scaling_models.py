"""Models in sizes, for `scaling.py`: `KIND_SIZE` is a factory, such as `news_sequence_128` or `depth_32`."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnxft.exporters.factory import load_factory

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ROWS = 2
"""Of the example inputs; a session takes any number."""
WIDTH = 256
"""Of the plain model."""

Made = tuple[nn.Module, Any]


def news_sequence(length: int) -> Made:
    """MiniLM with 8 topics, on texts of `length` tokens."""
    module, _ = load_factory(f"{EXAMPLES / 'newswire/model.py'}:eight_topics")
    mask = torch.ones(ROWS, length, dtype=torch.int64)
    mask[::2, length // 2 :] = 0
    return module, {"input_ids": torch.randint(1000, 2000, (ROWS, length)) * mask, "attention_mask": mask}


def news_layers(layers: int) -> Made:
    """The same with so many encoder layers, its own six in turn, on texts of 64 tokens."""
    module, examples = news_sequence(64)
    encoder: Any = module.encoder.encoder
    encoder.layer = nn.ModuleList(deepcopy(encoder.layer[i % len(encoder.layer)]) for i in range(layers))
    return module, examples


def cells_image(side: int) -> Made:
    """EfficientNet-Lite0 with 2 classes, on pictures of `side` times `side` pixels, `side` a multiple of 32."""
    module, _ = load_factory(f"{EXAMPLES / 'solar_cells/model.py'}:factory")
    return module, torch.zeros(ROWS, 3, side, side)


class Block(nn.Module):
    """x + V relu(U x)"""

    def __init__(self) -> None:
        """Both of them `WIDTH` times `WIDTH`."""
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, WIDTH) -> (batch, WIDTH)"""
        return x + self.second(torch.relu(self.first(x)))


class Plain(nn.Module):
    """Blocks and a head, nothing else: what a step takes besides them shows."""

    def __init__(self, blocks: int) -> None:
        """Hold so many."""
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, WIDTH) -> logits (batch, 8)"""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def depth(blocks: int) -> Made:
    """The plain model."""
    return Plain(blocks), torch.zeros(ROWS, WIDTH)


KINDS: dict[str, Callable[[int], Made]] = {
    kind.__name__: kind for kind in (news_sequence, news_layers, cells_image, depth)
}


def make(kind: str, size: int) -> Made:
    """The same weights at every call."""
    torch.manual_seed(0)
    return KINDS[kind](size)


def __getattr__(name: str) -> Callable[[], Made]:
    # A factory takes no arguments, and the baselines call it by its name in processes of their own.
    kind, _, size = name.rpartition("_")
    if kind not in KINDS or not size.isdecimal():
        raise AttributeError(name)
    return partial(make, kind, int(size))
