"""Write the training step on which `onnxft doctor` tries providers, with what torch computes in float64.

`python tools/make_probe.py` writes `onnxft/runtime/probe_artifact`. Make it again when the schema of artifacts
changes.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

import onnxft
from onnxft.runtime.probe import ARTIFACT, EXPECTED, GRADIENT, LR, STEPS

BATCH = 8


class Probe(nn.Module):
    """What networks are made of, small: a convolution, pooling, dense layers, a norm, activations; 1,363 values."""

    def __init__(self) -> None:  # noqa: D107
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 4 * 4, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # noqa: D102
        x = nn.functional.max_pool2d(torch.relu(self.conv(image)), 2)
        return self.head(nn.functional.gelu(self.norm(self.hidden(x.flatten(1)))))


def expected(model: nn.Module, image: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """The losses of the steps, and the gradients before the first one; computed in float64."""
    model = model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    gradients: dict[str, np.ndarray] = {}
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(image.double()), labels)
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or {
            f"{GRADIENT}{n}": p.grad.float().numpy() for n, p in model.named_parameters() if p.grad is not None
        }
        optimizer.step()
    return {**gradients, "losses": np.array(losses)}


def main(arguments: Sequence[str] = ()) -> int:
    """Write the artifact and what is expected of it; into another folder than the package's where one is given."""
    folder = Path(arguments[0]) if arguments else ARTIFACT
    torch.manual_seed(0)
    model = Probe()
    image, labels = torch.randn(BATCH, 2, 8, 8), torch.randint(0, 5, (BATCH,))
    shutil.rmtree(folder, ignore_errors=True)
    onnxft.export(model, image, folder, input_names=["image"], batch_size=BATCH, precision=("bfloat16", "float16"))
    values = {"image": image.numpy(), "labels": labels.numpy(), **expected(model, image, labels)}
    save_file(values, folder / EXPECTED)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"Wrote {folder}: {size:,} bytes, losses {values['losses'].round(4).tolist()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
