"""Export of a torch module in training and in inference behaviour."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from onnxft.errors import ModelError, near
from onnxft.exporters.check import check_outputs, check_tensors
from onnxft.exporters.naming import check_names, check_output_names, rename_inputs
from onnxft.exporters.shapes import complete_shapes
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import OPSET, normalize
from onnxft.manifest import BATCH

_NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers that behave differently in training and are traced in inference behaviour: `step/` trains statistics."""


def export_module(
    module: nn.Module,
    example_inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | torch.Tensor,
    *,
    name: str = "model",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
) -> Forward:
    """Export a module; it is left as it was.

    Args:
        module: the model; its parameters keep their names.
        example_inputs: tensors with the batch first, in the order of `forward` or by its argument names.
        name: of the model.
        input_names: names of the inputs in the graphs; None takes forward's argument names.
        output_names: names of the outputs; None takes `output`, or `output_0`, `output_1`, ...
        dropout: whether the training graph keeps Dropout and other random operators.

    Raises:
        ModelError: torch cannot export it, or what it exported does not equal the module.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(module).__name__}.")
    examples, rows = _examples(module, example_inputs)
    inputs, notes = rename_inputs(tuple(input_names or examples))
    if len(inputs) != len(examples):
        raise ModelError(f"input_names has {len(inputs)} names for {len(examples)} inputs.")
    tensors = state_tensors(module)
    check_names(inputs, tensors)
    untrainable = _untrainable_norms(module)
    infer = _export(module, examples, inputs, output_names, training=False, tensors=tensors)
    # Nothing but tracing tells whether training behaviour differs: attention drops out without a Dropout layer.
    train = infer.clone()
    # Only tracing tells whether training behaviour differs: torch's attention drops out without a Dropout layer.
    if dropout:
        train = _export(module, examples, inputs, output_names, training=True, tensors=tensors)
    used = set(infer.graph.initializers)
    outputs = tuple(str(v.name) for v in infer.graph.outputs)
    forward = Forward(
        name=name,
        train=train,
        infer=infer,
        tensors=tuple(
            Tensor(t.name, t.shape, t.dtype, t.kind, t.tied_to, used=t.name in used) for t in tensors.values()
        ),
        inputs=inputs,
        outputs=outputs,
        example_rows=rows,
        untrainable_norms=untrainable,
        versions={"torch": str(torch.__version__)},
        notes=notes,
    )
    with _mode(module, training=False):
        check_outputs(forward, module, examples)
    return forward


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; those that share storage appear once, under their first name."""
    found: dict[tuple[Any, ...], list[str]] = {}
    kinds: dict[str, tuple[torch.Tensor, str]] = {}
    for kind, named in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            kinds[name] = (tensor, kind)
            # Ties are shared storage, never equal values.
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else (name,)
            found.setdefault(place, []).append(name)
    result = {}
    for names in found.values():
        tensor, kind = kinds[names[0]]
        dtype = str(tensor.dtype).removeprefix("torch.")
        result[names[0]] = Tensor(names[0], tuple(tensor.shape), dtype, kind, tuple(names[1:]))
    return result


def _export(
    module: nn.Module,
    examples: dict[str, torch.Tensor],
    inputs: Sequence[str],
    output_names: Sequence[str] | None,
    *,
    training: bool,
    tensors: dict[str, Tensor],
) -> ir.Model:
    batch = torch.export.Dim(BATCH, min=1)
    with _mode(module, training=training), _quiet():
        try:
            program = torch.onnx.export(
                module,
                (),
                kwargs=examples,
                input_names=list(inputs),
                output_names=list(output_names) if output_names else None,
                dynamic_shapes={name: {0: batch} for name in examples},
                opset_version=OPSET,
                dynamo=True,
                # Optimized, it merges equal initializers, folds normalisation and renames weights.
                optimize=False,
                verbose=False,
            )
        except Exception as err:
            reason = next((line for line in str(err.__cause__ or err).splitlines() if line.strip()), type(err).__name__)
            raise ModelError(f"torch cannot export the model: {reason.strip()}") from err
    assert program is not None
    model: ir.Model = program.model
    _tie(model.graph, tensors)
    check_tensors(module, model.graph, tensors, _read_names(program))
    normalize(model, tensors)
    complete_shapes(model, {})
    _name_outputs(model.graph, output_names)
    return model


def _read_names(program: Any) -> set[str]:
    """Names of the state tensors that the traced program reads, by torch's own account."""
    signature = program.exported_program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    users = {n.name: n.users for n in program.exported_program.graph.nodes if n.op == "placeholder"}
    return {target for placeholder, target in names.items() if users.get(placeholder)}


def _tie(graph: ir.Graph, tensors: dict[str, Tensor]) -> None:
    """Let all readers of a tied tensor read the initializer of its first name."""
    for tensor in tensors.values():
        names = [n for n in (tensor.name, *tensor.tied_to) if n in graph.initializers]
        if not names or not tensor.tied_to:
            continue
        first = graph.initializers[names[0]]
        for other in names[1:]:
            graph.initializers[other].replace_all_uses_with(first)
            del graph.initializers[other]
        if names[0] != tensor.name:
            del graph.initializers[names[0]]
            first.name = tensor.name
            graph.register_initializer(first)


def _name_outputs(graph: ir.Graph, output_names: Sequence[str] | None) -> None:
    names = output_names or (
        ["output"] if len(graph.outputs) == 1 else [f"output_{i}" for i in range(len(graph.outputs))]
    )
    if len(names) != len(graph.outputs):
        raise ModelError(f"output_names has {len(names)} names for {len(graph.outputs)} outputs.")
    check_output_names(names, {str(v.name) for v in graph.inputs} | set(graph.initializers))
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _examples(module: nn.Module, given: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Example inputs by forward's argument names, and their rows.

    A single row is repeated: traced with 1, the batch could pass for an axis that is broadcast.
    """
    if isinstance(given, torch.Tensor):
        given = (given,)
    if not isinstance(given, Mapping | Sequence) or isinstance(given, str) or not given:
        raise ModelError(
            f"example inputs must be tensors: one, a tuple or {{argument name: tensor}}, not {given!r:.80}."
        )
    names = list(inspect.signature(module.forward).parameters)
    if not isinstance(given, Mapping):
        if len(given) > len(names):
            raise ModelError(f"forward takes {len(names)} inputs ({', '.join(names)}), {len(given)} were given.")
        given = dict(zip(names, given, strict=False))
    elif unknown := [name for name in given if name not in names]:
        raise ModelError(f"forward has no input '{unknown[0]}'.{near(unknown[0], names)}")
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) == 0:
            raise ModelError(f"example input '{name}' must be a tensor with the batch as its first dimension.")
    rows = {name: len(value) for name, value in given.items()}
    count = next(iter(rows.values()))
    if any(n != count for n in rows.values()):
        raise ModelError(f"example inputs must have equally many rows, the batch first; here {rows}.")
    values = {name: value.detach() for name, value in given.items()}
    return {name: torch.cat([v, v]) if count == 1 else v for name, v in values.items()}, count


def _untrainable_norms(module: nn.Module) -> dict[str, str]:
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
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
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
def _quiet() -> Iterator[None]:
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
