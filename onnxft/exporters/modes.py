"""The modes in which a torch module is traced, and which of its normalisation layers can be trained."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch import nn

from onnxft.errors import ModelError

_NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers that behave differently in training and are traced in inference behaviour: `step/` trains statistics."""


def untrainable_norms(module: nn.Module) -> dict[str, str]:
    """{BatchNorm layer: why its running statistics cannot be trained}

    Raises:
        ModelError: a layer has none, so that every row changes what the others become, at inference too.
    """
    found = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        if layer.running_mean is None:
            raise ModelError(
                f"the BatchNorm layer '{name}' keeps no running statistics (track_running_stats=False): the result for "
                "one row depends on the other rows, also at inference and beside padding. Give the layer running "
                "statistics, or use a normalisation of single rows (GroupNorm, LayerNorm)."
            )
        if isinstance(layer, nn.SyncBatchNorm):
            found[name] = "it is a SyncBatchNorm, whose statistics are those of several processes"
        elif layer.momentum is None:
            found[name] = "its momentum is None (a cumulative average)"
    return found


@contextlib.contextmanager
def mode_of(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or inference mode, with normalisation in inference mode; the old modes come back."""
    before = {m: m.training for m in module.modules()}
    try:
        module.train(training)
        for m in before:
            if isinstance(m, _NORMALIZATION):
                m.eval()
        yield
    finally:
        for m, mode in before.items():
            m.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about training mode, torchvision and its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
