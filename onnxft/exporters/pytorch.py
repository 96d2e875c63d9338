"""Export of a torch module in training and in inference behaviour."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from onnxft.errors import ModelError, near
from onnxft.exporters.autograd import look
from onnxft.exporters.check import check_outputs, check_tensors
from onnxft.exporters.dimensions import DynamicShapes, check_dimensions
from onnxft.exporters.legacy import trace
from onnxft.exporters.modes import mode_of, quiet, untrainable_norms
from onnxft.exporters.naming import check_names, check_output_names, rename_inputs
from onnxft.exporters.padding import mark_padding
from onnxft.exporters.shapes import complete_shapes
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import OPSET, activate_dropout, normalize
from onnxft.manifest import BATCH
from onnxft.runtime.providers import first_line

_RANDOM = ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial")
"""Random operators besides Dropout: what they turn into in inference only a second trace tells."""
_LOSSES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


def export_module(
    module: nn.Module,
    example_inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | torch.Tensor,
    *,
    name: str = "model",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
    largest: Mapping[str, int] | None = None,
    give_way: bool = False,
) -> Forward:
    """Export a module; it is left as it was.

    Args:
        module: the model; its parameters keep their names.
        example_inputs: tensors with the batch first, in the order of `forward` or by its argument names.
        name: of the model.
        input_names: names of the inputs in the graphs; None takes forward's argument names.
        output_names: names of the outputs; None takes `output`, or `output_0`, `output_1`, ...
        dropout: whether the training graph keeps Dropout and other random operators.
        dynamic_shapes: {argument name: {axis: name of a symbolic dimension}}, besides the batch.
        largest: {name of a symbolic dimension: the largest size that the model takes}, where there is one.
        give_way: whether a dimension that cannot stay symbolic is fixed with a note, instead of an error.

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
    dimensions = check_dimensions(examples, dynamic_shapes or {})
    untrainable = untrainable_norms(module)
    with mode_of(module, training=False):
        seen = look(module, examples)
    notes = (*notes, *seen.notes)
    source = _Source(
        module, examples, inputs, output_names, tensors, seen.reached, untrainable, dynamic_shapes or {}, dimensions,
        largest or {},
    )  # fmt: skip
    try:
        forward = _forward(source, dropout, name=name, rows=rows, notes=notes)
    except ModelError as err:
        if not (give_way and dimensions):
            raise
        fixed = ", ".join(f"'{d}' is fixed to {n}" for d, n in dimensions.items())
        notes = (*notes, f"the dimension {fixed}: {err}".rstrip("."))
        source = replace(source, dynamic_shapes={}, sizes={})
        forward = _forward(source, dropout, name=name, rows=rows, notes=notes)
    mark_padding(forward, module)
    return forward


@dataclass(frozen=True)
class _Source:
    """What is exported, and how its graph is to look."""

    module: nn.Module
    examples: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    output_names: Sequence[str] | None
    tensors: dict[str, Tensor]
    reached: Collection[str]
    """Parameters from which torch's autograd reaches an output."""
    untrainable_norms: Mapping[str, str]
    dynamic_shapes: DynamicShapes
    sizes: Mapping[str, int]
    """{symbolic dimension besides the batch: its size in the example}"""
    largest: Mapping[str, int]

    @property
    def symbolic(self) -> dict[str, dict[int, str]]:
        """{input of the graph: {axis: name}}, with the batch."""
        return {
            own: {0: BATCH, **self.dynamic_shapes.get(name, {})}
            for own, name in zip(self.inputs, self.examples, strict=True)
        }


def _forward(source: _Source, dropout: bool, *, notes: tuple[str, ...], **described: Any) -> Forward:
    """The forward model, compared with the module."""
    # Only tracing tells whether training behaviour differs: torch's attention drops out without a Dropout layer.
    train, how = _export(source, training=True) if dropout else (None, ())
    infer = _without_dropout(train) if train is not None else None
    if train is not None and infer is not None:
        # Tracing takes seconds. Where inference differs in more than dropout, the comparison finds it.
        with contextlib.suppress(ModelError):
            return _checked(source, infer, train, notes=(*notes, *how), **described)
    infer, how = _export(source, training=False)
    train = infer.clone() if train is None else train
    return _checked(source, infer, train, notes=(*notes, *how), **described)


def _without_dropout(train: ir.Model) -> ir.Model | None:
    """A training graph with every Dropout taken out; None if it has other random operators."""
    if any(node.op_type in _RANDOM for node in train.graph.all_nodes()):
        return None
    infer = train.clone()
    for node in [n for n in infer.graph if n.op_type == "Dropout"]:
        x, mask = node.inputs[0], node.outputs[1:]
        if x is None or any(m.uses() for m in mask):
            return None
        if node.outputs[0].is_graph_output():
            return None
        node.outputs[0].replace_all_uses_with(x)
    common.RemoveUnusedNodesPass()(infer)
    return infer


def _checked(
    source: _Source,
    infer: ir.Model,
    train: ir.Model,
    *,
    name: str,
    rows: int,
    notes: tuple[str, ...],
) -> Forward:
    """The forward model of two graphs, of which that for inference equals the module."""
    used = set(infer.graph.initializers)
    forward = Forward(
        name=name,
        train=train,
        infer=infer,
        tensors=tuple(_as_read(source, used)),
        inputs=source.inputs,
        outputs=tuple(str(v.name) for v in infer.graph.outputs),
        example_rows=rows,
        dimensions=source.sizes,
        untrainable_norms=source.untrainable_norms,
        versions={"torch": str(torch.__version__)},
        notes=notes,
    )
    with mode_of(source.module, training=False):
        check_outputs(forward, source.module, source.examples)
    return forward


def _as_read(source: _Source, used: Collection[str]) -> Iterator[Tensor]:
    """The tensors of the module, with what the graph and torch's autograd know of them."""
    for tensor in source.tensors.values():
        frozen, trained = tensor.frozen, tensor.kind == "parameter" and tensor.dtype.startswith("float")
        if trained and not {tensor.name, *tensor.tied_to} & set(source.reached):
            frozen = "the model reads it without a gradient (torch.no_grad or detach)"
        yield replace(tensor, used=tensor.name in used, frozen=frozen)


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
        kept = kind == "parameter" and not tensor.requires_grad
        frozen = "the model has it frozen (requires_grad=False)" if kept else ""
        result[names[0]] = Tensor(names[0], tuple(tensor.shape), dtype, kind, tuple(names[1:]), frozen=frozen)
    return result


def _export(source: _Source, *, training: bool) -> tuple[ir.Model, tuple[str, ...]]:
    """The graph in one mode, and notes on how it was made."""
    with mode_of(source.module, training=training), quiet():
        try:
            model, read = _torch_export(source)
            notes: tuple[str, ...] = ()
        except Exception as err:
            first = first_line(err.__cause__ or err)
            try:
                model = trace(source.module, source.examples, source.inputs, source.symbolic, source.tensors)
            except Exception as err_traced:
                raise ModelError(
                    f"torch cannot export the model.\n  torch.export: {first}\n  tracing: {first_line(err_traced)}"
                ) from err
            read = set(source.reached)
            notes = (f"the model was exported by tracing, since torch.export failed: {first}",)
    common.InlinePass()(model)
    for node in model.graph:
        if node.op_type in _LOSSES:  # torch 2.13 records the shape () for reduction="none" too
            for value in node.outputs:
                value.shape = None
    if training:
        # torch's fused attention is exported with its rate, but inactive.
        activate_dropout(model.graph, every=False)
    _tie(model.graph, source.tensors)
    if {n for n, t in source.tensors.items() if t.kind == "parameter"} & read - set(model.graph.initializers):
        # Read, but to no effect: an exporter may leave out what no output hangs on.
        read = {n for n in read if n in source.reached or n in model.graph.initializers}
    check_tensors(source.module, model.graph, source.tensors, read)
    normalize(model, source.tensors, source.symbolic)
    complete_shapes(model, source.sizes, {n: v.cpu().numpy() for n, v in source.examples.items()})
    _name_outputs(model.graph, source.output_names)
    return model, notes


def _torch_export(source: _Source) -> tuple[ir.Model, set[str]]:
    """The graph as torch.export makes it, and the names of the tensors that it reads."""
    # One object for each name: torch relates dimensions by it.
    names = {n for axes in source.symbolic.values() for n in axes.values()}
    dims = {n: torch.export.Dim(n, min=1 if n == BATCH else 2, max=source.largest.get(n)) for n in names}
    shapes = [{axis: dims[name] for axis, name in axes.items()} for axes in source.symbolic.values()]
    program = torch.onnx.export(
        source.module,
        (),
        kwargs=source.examples,
        input_names=list(source.inputs),
        dynamic_shapes=dict(zip(source.examples, shapes, strict=True)),
        opset_version=OPSET,
        dynamo=True,
        # Optimized, it merges equal initializers, folds normalisation and renames weights.
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program.model, _read_names(program)


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
