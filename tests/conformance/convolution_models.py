"""U-Nets, spatial transformers, and networks over one and three dimensions, as subjects of conformance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from conformance_subjects import ROWS, Subject
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """Two levels: transposed convolution comes up from the lower one, interpolation from the upper one."""

    def __init__(self, resize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.resize = resize
        self.encode1 = block(3, 6)
        self.encode2 = block(6, 8)
        self.bottom = block(8, 10)
        self.up2 = nn.ConvTranspose2d(10, 8, 3, stride=2, padding=1, output_padding=1)
        self.decode2 = block(16, 8)
        self.decode1 = block(14, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.encode1(image)
        middle = self.encode2(functional.max_pool2d(fine, 2))
        x = self.up2(self.bottom(functional.max_pool2d(middle, 2)))
        x = self.decode2(torch.cat([x, middle], 1))
        x = self.decode1(torch.cat([self.resize(x, fine), fine], 1))
        return self.head(x)


class Signals(nn.Module):
    """Over one dimension: dilated, grouped, depthwise and transposed convolution, every pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 8, 5, padding=4, dilation=2)
        self.bn1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 12, 3, stride=2, groups=4)
        self.depthwise = nn.Conv1d(12, 12, 3, padding="same", dilation=3, groups=12, bias=False)
        self.up = nn.ConvTranspose1d(12, 6, 4, stride=3, padding=1, output_padding=1, groups=2)
        self.bn2 = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)
        settle(self)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool1d(functional.elu(self.bn1(self.conv1(signal))), 3, stride=2, padding=1)
        x = functional.avg_pool1d(functional.elu(self.conv2(x)), 2)
        x = functional.elu(self.bn2(self.up(self.depthwise(x))))
        return self.head(functional.adaptive_avg_pool1d(x, 1).flatten(1))


class Volumes(nn.Module):
    """Over three dimensions: strided, grouped and transposed convolution, both poolings, nearest interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm3d(6)
        self.conv2 = nn.Conv3d(6, 8, (1, 3, 3), stride=(1, 2, 1), groups=2)
        self.up = nn.ConvTranspose3d(8, 4, (2, 3, 2), stride=2, dilation=(1, 2, 1))
        self.conv3 = nn.Conv3d(4, 4, 3, dilation=(1, 2, 1))
        self.head = nn.Linear(4, 3)
        settle(self)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool3d(functional.elu(self.bn(self.conv1(volume))), 2)
        x = functional.elu(self.up(self.conv2(x)))
        x = functional.avg_pool3d(functional.elu(self.conv3(x)), 2)
        x = functional.interpolate(x, scale_factor=(1, 2, 2))
        return self.head(x.mean((2, 3, 4)))


class Transformer(nn.Module):
    """A spatial transformer: the picture is read at a grid that the network itself computes."""

    def __init__(self, mode: str, padding_mode: str) -> None:
        super().__init__()
        self.mode, self.padding_mode = mode, padding_mode
        self.features = nn.Conv2d(3, 4, 3, stride=2)
        self.theta = nn.Linear(4, 6)
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)
        with torch.no_grad():
            self.theta.bias += torch.tensor([1.0, 0.1, 0.3, -0.1, 1.2, -0.2])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        theta = self.theta(functional.elu(self.features(image)).mean((2, 3))).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
        read = functional.grid_sample(functional.elu(image), grid, self.mode, self.padding_mode, align_corners=False)
        return self.head(functional.elu(self.conv(read)).mean((2, 3)))


def block(inputs: int, outputs: int) -> nn.Sequential:
    found = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ELU())
    settle(found)
    return found


def settle(module: nn.Module) -> None:
    """Statistics as after training: with 0 and 1 a frozen normalisation would hide its errors."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            with torch.no_grad():
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.5, 2.0)


RESIZES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "nearest": lambda x, like: functional.interpolate(x, scale_factor=2),
    "bilinear": lambda x, like: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "corners": lambda x, like: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "nearest_to_size": lambda x, like: functional.interpolate(x, size=like.shape[2:]),
    "bilinear_to_size": lambda x, like: functional.interpolate(x, size=like.shape[2:], mode="bilinear"),
    "bicubic_to_size": lambda x, like: functional.interpolate(x, size=like.shape[2:], mode="bicubic"),
}


def unet(resize: str, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(21)
    return UNet(RESIZES[resize]), (torch.randn(2, *shape),)


def signals() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(22)
    return Signals(), (torch.randn(2, 3, 41),)


def volumes() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(23)
    return Volumes(), (torch.randn(2, 2, 8, 14, 10),)


def transformer(mode: str, padding_mode: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(24)
    return Transformer(mode, padding_mode), (torch.randn(2, 3, 9, 11),)


@dataclass(frozen=True)
class PixelSubject(Subject):
    """A subject with a label for each pixel."""

    def _batch(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        space = self.shape[1:]
        x = rng.standard_normal((ROWS, *self.shape)).astype(np.float32)
        if self.loss == "mse":
            return {self.input_name: x, "labels": rng.standard_normal((ROWS, self.outputs, *space)).astype(np.float32)}
        return {self.input_name: x, "labels": rng.integers(0, self.outputs, (ROWS, *space))}


EVEN, ODD = (3, 16, 20), (3, 17, 21)
SUBJECTS = {
    s.name: s
    for s in (
        *(
            PixelSubject(f"unet_{resize}", partial(unet, resize, shape), "image", shape, loss, 4)
            for resize, shape, loss in (
                ("nearest", EVEN, "cross_entropy"),
                ("bilinear", EVEN, "mse"),
                ("corners", EVEN, "cross_entropy"),
                ("nearest_to_size", ODD, "mse"),
                ("bilinear_to_size", ODD, "cross_entropy"),
                ("bicubic_to_size", ODD, "mse"),
            )
        ),
        Subject("signals", signals, "signal", (3, 41), "cross_entropy", 5),
        *(
            Subject(f"transformer_{mode}", partial(transformer, mode, padding), "image", (3, 9, 11), "cross_entropy", 4)
            for mode, padding in (("bilinear", "zeros"), ("bicubic", "reflection"))
        ),
        Subject("volumes", volumes, "volume", (2, 8, 14, 10), "mse", 3),
    )
}
