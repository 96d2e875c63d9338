"""The adapters that an artifact trains, in its torch model: those of the package peft."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from onnxft.errors import ModelError, ProviderError
from onnxft.manifest import Manifest
from onnxft.merge import LORA_A, LORA_B
from onnxft.runtime.adapters.peft import why_not_peft
from onnxft.runtime.providers import first_line

_WEIGHT = ".weight"


def add_adapters(module: torch.nn.Module, manifest: Manifest) -> None:
    """Put the artifact's adapters into `module`, in evaluation mode; without adapters it stays as it is.

    Raises:
        ProviderError: peft is not installed.
        ModelError: peft has no such adapter, so the work would differ.
    """
    if not manifest.adapters:
        return
    try:
        import peft
    except ModuleNotFoundError as err:
        if err.name != "peft":
            raise
        raise ProviderError(
            "the artifact trains LoRA adapters, for which the torch baselines need peft, and it is not installed here. "
            "Install it with `pip install peft`, or name an environment that has it with --python torch=PATH."
        ) from err
    _check(module, manifest)
    (kind,) = _kinds(manifest)
    config = peft.LoraConfig(
        r=kind.rank,
        lora_alpha=kind.alpha,
        lora_dropout=kind.dropout,
        # A pattern that matches whole names: peft takes a list as endings of names, which others may have too.
        target_modules="|".join(re.escape(layer) for layer in _layers(manifest)),
    )
    try:
        peft.inject_adapter_in_model(config, module)
    except ValueError as err:
        raise ModelError(f"peft cannot adapt the model: {first_line(err)}. Benchmark without torch.") from err
    module.eval()  # what was added would be in training mode


def named_tensors(module: torch.nn.Module, manifest: Manifest) -> dict[str, torch.Tensor]:
    """{name in the artifact: parameter or buffer of `module`}, also of one that `add_adapters` changed."""
    names: dict[str, str] = {}
    for layer in _layers(manifest):
        names |= {f"{layer}.{factor}.default.weight": f"{layer}.weight.{factor}" for factor in (LORA_A, LORA_B)}
        names |= {f"{layer}.base_layer.{leaf}": f"{layer}.{leaf}" for leaf in ("weight", "bias")}
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _layers(manifest: Manifest) -> list[str]:
    """Names of the modules that have an adapter."""
    return [target.removesuffix(_WEIGHT) for target in manifest.adapters]


class _Kind(NamedTuple):
    """What peft fixes for all layers."""

    rank: int
    alpha: float
    dropout: float


def _kinds(manifest: Manifest) -> set[_Kind]:
    factors = (a for a, _ in manifest.adapters.values())
    return {_Kind(a.shape[0], a.merge.alpha, a.merge.dropout) for a in factors if a.merge is not None}


def _check(module: torch.nn.Module, manifest: Manifest) -> None:
    reason = why_not_peft(manifest)
    if len(_kinds(manifest)) > 1:
        reason = "the adapters differ in rank, scale or dropout"
    named = dict(module.named_parameters(remove_duplicate=False))
    for target in manifest.adapters:
        if not reason and target not in named:
            reason = f"the source has no '{target}', to which the artifact adds an adapter"
        if not reason and len(shared := [n for n, p in named.items() if p is named[target]]) > 1:
            reason = f"'{target}' is shared ({', '.join(shared)}), and peft adapts the layers one by one"
    if reason:
        raise ModelError(f"{reason}: the work of torch would differ. Benchmark the artifact without torch.")
