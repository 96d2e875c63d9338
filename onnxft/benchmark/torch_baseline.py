"""The torch baseline: the same step in eager PyTorch, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812 - the name that every reader of PyTorch code knows

from onnxft.benchmark.batch import input_ports, output_ports, random_batch
from onnxft.benchmark.exchange import Measurement, Request
from onnxft.benchmark.scenario import measure, peak_rss_bytes
from onnxft.errors import ArtifactError, ModelError
from onnxft.manifest import FROZEN_FILE, LABELS, PARAMETERS_FILE, Loss, Manifest, Optimizer
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.engine import Array
from onnxft.runtime.rates import by_group


def run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    """Measure torch; the measurement and {parameter: gradient} at the initial parameters.

    ModelError where the source is not the model that was exported.
    """
    artifact = Path(request.artifact)
    manifest = load_artifact(artifact)
    torch.set_num_threads(request.threads)
    batch = {k: torch.from_numpy(v) for k, v in random_batch(manifest, request.batch_size, request.config.seed).items()}

    start = time.perf_counter()
    module, keywords = _load(str(request.config.source), manifest)
    parameters = select_trainables(module, manifest)
    train_statistics(module, manifest)
    load_initial_values(module, manifest, artifact)
    lr = request.config.lr
    optimizer = build_optimizer(parameter_groups(parameters, manifest, lr), manifest.optimizer, lr)
    build_seconds = time.perf_counter() - start

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(module, keywords, manifest, batch)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    times = measure(step, request.config)
    peak = peak_rss_bytes()
    load_initial_values(module, manifest, artifact)
    optimizer.zero_grad(set_to_none=True)
    batch_loss(module, keywords, manifest, batch).backward()
    measurement = Measurement(
        provider_requested="torch",
        provider_obtained="torch",
        nodes={},
        fallback_nodes=None,
        versions={"torch": str(torch.__version__)},
        build_seconds=build_seconds,
        first_step_seconds=times.first_step,
        warmup_seconds=times.warmup,
        step_seconds=times.steps,
        peak_rss_bytes=peak,
        loss=times.loss,
    )
    # A parameter that the loss does not depend on has no gradient in torch and a zero one in a graph.
    return measurement, {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy() for name, p in parameters.items()
    }


def select_trainables(module: torch.nn.Module, manifest: Manifest) -> dict[str, torch.nn.Parameter]:
    """Set `requires_grad` as the artifact has it; {name: parameter} of the trained. ModelError for a foreign name."""
    named = dict(module.named_parameters(remove_duplicate=False))
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
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
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


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], manifest: Manifest, lr: float
) -> list[dict[str, Any]]:
    """The artifact's groups with the rates that a session gives them."""
    rates, decays = by_group(manifest, lr, None)
    members = {g: [parameters[p.name] for p in manifest.parameters if p.group == g] for g in manifest.groups}
    return [{"params": members[g], "lr": rates[g], "weight_decay": decays[g]} for g in manifest.groups]


def build_optimizer(
    groups: list[dict[str, Any]] | list[torch.nn.Parameter], optimizer: Optimizer, lr: float
) -> torch.optim.Optimizer:
    """The manifest's optimizer in torch; ModelError for an option that it would ignore."""
    options = dict(optimizer.options)
    arguments: dict[str, Any] = {"lr": lr, "weight_decay": optimizer.weight_decay}
    kind: type[torch.optim.Optimizer]
    match optimizer.kind:
        case "adam" | "adamw":
            kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
            arguments |= {
                "betas": (options.pop("beta1", 0.9), options.pop("beta2", 0.999)),
                "eps": options.pop("eps", 1e-8),
            }
        case "sgd":
            kind = torch.optim.SGD
            arguments |= {"momentum": options.pop("momentum", 0.0), "nesterov": bool(options.pop("nesterov", 0.0))}
        case _:
            raise ModelError(f"torch has no optimizer '{optimizer.kind}'. Benchmark without --baseline torch.")
    if options:
        raise ModelError(
            f"the torch baseline does not know the option(s) {', '.join(sorted(options))} of the optimizer "
            f"'{optimizer.kind}': the work would differ. Benchmark without --baseline torch."
        )
    return kind(groups, **arguments)


def batch_loss(
    module: torch.nn.Module, keywords: tuple[str, ...], manifest: Manifest, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The mean loss of the batch, shape (); `keywords` names the inputs of `forward`, empty for positions."""
    inputs = [batch[port.name] for port in input_ports(manifest)]
    result = module(**dict(zip(keywords, inputs, strict=True))) if keywords else module(*inputs)
    output = _loss_output(result, manifest)
    return output.mean() if manifest.loss.kind == "model" else mean_loss(manifest.loss, output, batch[LABELS])


def mean_loss(loss: Loss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The manifest's loss in torch, shape ()."""
    match loss.kind:
        case "cross_entropy":
            if loss.shift:
                x, y = x[:, : -loss.shift], y[:, loss.shift :]
            ignored = -100 if loss.ignore_index is None else loss.ignore_index  # torch's default is no label
            weight = torch.tensor(loss.class_weights, dtype=x.dtype) if loss.class_weights else None
            x, smoothing = x.movedim(loss.class_axis, 1), loss.label_smoothing
            return F.cross_entropy(x, y, weight, ignore_index=ignored, label_smoothing=smoothing)
        case "bce_with_logits":
            p = None
            if loss.pos_weight:
                along = [-1 if axis == loss.class_axis else 1 for axis in range(x.ndim)]
                p = torch.tensor(loss.pos_weight, dtype=x.dtype).reshape(along)
            return F.binary_cross_entropy_with_logits(x, y, pos_weight=p)
        case "kl_div":
            each = F.kl_div(F.log_softmax(x, loss.class_axis), y, reduction="none")
            return each.sum(loss.class_axis).mean()
        case "huber":
            return F.huber_loss(x, y, delta=loss.delta)
    return F.l1_loss(x, y) if loss.kind == "l1" else F.mse_loss(x, y)


def _loss_output(result: Any, manifest: Manifest) -> torch.Tensor:
    """The output that the loss reads, at the place that it has in the exported graph."""
    values = [result] if isinstance(result, torch.Tensor) else result
    values = list(values.values() if isinstance(values, Mapping) else values)
    names = [port.name for port in output_ports(manifest)]
    found = dict(zip(names, values, strict=True)) if len(names) == len(values) else {}
    output = found.get(manifest.loss.output)
    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"the source returns {len(values)} values where the artifact has {', '.join(names)}: the loss reads "
            f"'{manifest.loss.output}'. Give the --source that the artifact was exported from."
        )
    return output


def _load(source: str, manifest: Manifest) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The source's module with normalisation frozen and dropout off, and the names of its inputs if it has any."""
    from onnxft.exporters.factory import load_factory

    module, examples = load_factory(source)
    count = 1 if isinstance(examples, torch.Tensor) else len(examples)
    if count != len(input_ports(manifest)):
        raise ModelError(
            f"the source '{source}' has {count} example inputs, the artifact {len(input_ports(manifest))}. "
            "Give the --source that the artifact was exported from."
        )
    return module.eval(), tuple(examples) if isinstance(examples, Mapping) else ()
