"""The model behind an artifact in PyTorch: its module with the artifact's values, trainables and loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812 - the name that every reader of PyTorch code knows

from onnxft.benchmark.torch_adapters import named_tensors
from onnxft.errors import ArtifactError, ModelError
from onnxft.manifest import FROZEN_FILE, LABELS, PARAMETERS_FILE, Loss, Manifest
from onnxft.runtime.random_batch import random_batch

Tensors = Mapping[str, torch.Tensor]


class TorchModel:
    """The source of an artifact: a module that computes the artifact's outputs and loss of a batch."""

    def __init__(self, source: str, manifest: Manifest) -> None:
        """Call the factory; normalisation is frozen and dropout off. ModelError where the inputs are not those."""
        from onnxft.exporters.factory import load_factory

        module, examples = load_factory(source)
        self.input_names = tuple(port.name for port in manifest.inputs)
        count = 1 if isinstance(examples, torch.Tensor) else len(examples)
        if count != len(self.input_names):
            raise ModelError(
                f"the source '{source}' has {count} example inputs, the artifact {len(self.input_names)}. "
                "Give the --source that the artifact was exported from."
            )
        self.module: torch.nn.Module = module.eval()
        self.keywords = tuple(examples) if isinstance(examples, Mapping) else ()
        """Names of the inputs of `forward`; empty for positions."""
        self.output_names = tuple(port.name for port in manifest.evaluation.named("output", "outputs"))
        self.function = manifest.loss

    def inputs(self, batch: Tensors) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """What `forward` takes of a batch, by position or by name."""
        values = tuple(batch[name] for name in self.input_names)
        return dict(zip(self.keywords, values, strict=True)) if self.keywords else values

    def outputs(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """{output: tensor}, at the places that they have in the exported graph. ModelError where there are others."""
        inputs = self.inputs(batch)
        result = self.module(**inputs) if isinstance(inputs, dict) else self.module(*inputs)
        values = [result] if isinstance(result, torch.Tensor) else result
        values = list(values.values() if isinstance(values, Mapping) else values)
        if len(values) != len(self.output_names) or not all(isinstance(v, torch.Tensor) for v in values):
            raise ModelError(
                f"the source returns {len(values)} values where the artifact has {', '.join(self.output_names)}: the "
                f"loss reads '{self.function.output}'. Give the --source that the artifact was exported from."
            )
        return dict(zip(self.output_names, values, strict=True))

    def loss(self, batch: Tensors) -> torch.Tensor:
        """The mean loss of the batch, shape ()."""
        output = self.outputs(batch)[self.function.output]
        return output.mean() if self.function.kind == "model" else mean_loss(self.function, output, batch[LABELS])


def tensors(manifest: Manifest, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
    """The batch of every side."""
    return {name: torch.from_numpy(a) for name, a in random_batch(manifest, batch_size, seed).items()}


def select_trainables(module: torch.nn.Module, manifest: Manifest) -> dict[str, torch.nn.Parameter]:
    """Set `requires_grad` as the artifact has it; {name: parameter} of the trained. ModelError for a foreign name."""
    named = {n: t for n, t in named_tensors(module, manifest).items() if isinstance(t, torch.nn.Parameter)}
    module.requires_grad_(False)
    for parameter in manifest.parameters:
        if parameter.name not in named or tuple(named[parameter.name].shape) != parameter.shape:
            found = f"shape {tuple(named[parameter.name].shape)}" if parameter.name in named else "no such parameter"
            raise ModelError(
                f"the artifact trains '{parameter.name}' of shape {parameter.shape}; the source has {found}. "
                "Give the --source that the artifact was exported from."
            )
        named[parameter.name].requires_grad_(True)
    return {p.name: named[p.name] for p in manifest.parameters}


def train_statistics(module: torch.nn.Module, manifest: Manifest) -> None:
    """Put the BatchNorm layers that the artifact trains in training mode. ModelError where the source has none."""
    layers = dict(module.named_modules())
    for buffer in manifest.buffers:
        layer = layers.get(buffer.layer)
        if not isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            found = "nothing of that name" if layer is None else f"a {type(layer).__name__} there"
            raise ModelError(
                f"the artifact trains the BatchNorm layer '{buffer.layer}'; the source has {found}. "
                "Give the --source that the artifact was exported from."
            )
        layer.train()


def load_initial_values(module: torch.nn.Module, manifest: Manifest, artifact: Path) -> None:
    """Copy the artifact's values over those of the factory, which may be random.

    Only the native generator keeps the frozen values apart; with the other they stay the factory's.
    """
    values = _trained_values(manifest, artifact)
    if FROZEN_FILE in manifest.files:
        values |= load_file(artifact / FROZEN_FILE)
    own = named_tensors(module, manifest)
    with torch.no_grad():
        for name, value in values.items():
            # The frozen file also holds constants of the graph, which no module has.
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)


def _trained_values(manifest: Manifest, artifact: Path) -> dict[str, torch.Tensor]:
    if PARAMETERS_FILE in manifest.files:
        return dict(load_file(artifact / PARAMETERS_FILE))
    values: dict[str, torch.Tensor] = {}
    for p in manifest.parameters:
        where = p.inference
        # A manifest may be somebody else's: only files that it lists, and that were checked, are read.
        if where is None or where.file not in manifest.files:
            raise ArtifactError(f"the initial value of '{p.name}' is not in '{artifact}'. Export the artifact again.")
        data = np.fromfile(artifact / where.file, np.uint8, where.length, offset=where.offset)
        values[p.name] = torch.from_numpy(data.view(np.dtype(p.dtype).newbyteorder("<"))).reshape(p.shape)
    return values


def mean_loss(loss: Loss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The manifest's loss in torch, shape ()."""
    match loss.kind:
        case "cross_entropy":
            if loss.shift:
                x, y = x[:, : -loss.shift], y[:, loss.shift :]
            ignored = -100 if loss.ignore_index is None else loss.ignore_index  # torch's default is no label
            weight = torch.tensor(loss.class_weights, dtype=x.dtype, device=x.device) if loss.class_weights else None
            x, smoothing = x.movedim(loss.class_axis, 1), loss.label_smoothing
            return F.cross_entropy(x, y, weight, ignore_index=ignored, label_smoothing=smoothing)
        case "bce_with_logits":
            p = None
            if loss.pos_weight:
                along = [-1 if axis == loss.class_axis else 1 for axis in range(x.ndim)]
                p = torch.tensor(loss.pos_weight, dtype=x.dtype, device=x.device).reshape(along)
            return F.binary_cross_entropy_with_logits(x, y, pos_weight=p)
        case "kl_div":
            each = F.kl_div(F.log_softmax(x, loss.class_axis), y, reduction="none")
            return each.sum(loss.class_axis).mean()
        case "huber":
            return F.huber_loss(x, y, delta=loss.delta)
    return F.l1_loss(x, y) if loss.kind == "l1" else F.mse_loss(x, y)
