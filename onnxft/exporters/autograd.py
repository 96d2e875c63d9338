"""Which parameters torch's autograd reaches: a graph does not say where a model cut gradients off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from onnxft.exporters.check import tensors_of


def parameters_reached(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the floating-point parameters from which an output is reached, in the module's present mode.

    What is read under `torch.no_grad`, or detached everywhere, is not; what has requires_grad=False is.
    """
    named = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    with _all_trainable(list(named.values())), torch.enable_grad():
        outputs = [t for t in tensors_of(module(**examples)) if t.requires_grad]
        if not outputs:
            return set()
        found = torch.autograd.grad([t.sum() for t in outputs], list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


@contextmanager
def _all_trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, trained in zip(parameters, before, strict=True):
            p.requires_grad_(trained)
