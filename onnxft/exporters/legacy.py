"""Export by tracing, for what torch.export does not read: under the same guarantees.

Tracing freezes what Python decides. Decisions by shape are found out by the comparison at other sizes; those by
values are not, so a module that turns values into Python numbers is refused.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onnxft.errors import ModelError
from onnxft.exporters.check import tensors_of
from onnxft.graph.forward import Tensor
from onnxft.graph.normalize import OPSET


def trace(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    inputs: Sequence[str],
    symbolic: Mapping[str, Mapping[int, str]],
    tensors: Mapping[str, Tensor],
) -> ir.Model:
    """The graph of a module in its present mode.

    Raises:
        ModelError: the module decides by values.
        Exception: whatever torch raises.
    """
    _check_decisions(module, examples)
    flat = _Flat(module, tuple(examples))
    # As a module in training, torch merges initializers by storage, not by equal values; the modes inside stay.
    flat.training = True
    file = io.BytesIO()
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            flat,
            tuple(examples.values()),
            file,
            input_names=list(inputs),
            dynamic_axes={name: dict(axes) for name, axes in symbolic.items()},
            opset_version=OPSET,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            keep_initializers_as_inputs=False,
        )
    model: ir.Model = ir.from_proto(onnx.load_from_string(file.getvalue()))
    _restore_inputs(model.graph, inputs, examples, symbolic)
    _restore_names(model.graph, module, tensors)
    for node in model.graph:
        for value in node.outputs:  # traced sizes, some of which hold for the example only
            value.shape = None
    for value in model.graph.outputs:
        value.shape = None
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Without the graph that torch prints past Python where tracing fails."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123  (a file descriptor is asked for)
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class _Flat(nn.Module):  # type: ignore[misc]
    """The module with its inputs in order and its outputs as a tuple."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of `module`."""
        return tuple(tensors_of(self.module(**dict(zip(self.names, values, strict=True)))))


class _Decisions(TorchDispatchMode):  # type: ignore[misc]
    """Notes whether values become Python numbers; sizes are Python numbers already."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found = True
        return func(*args, **(kwargs or {}))


def _check_decisions(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad(), _Decisions() as decisions:
        module(**examples)
    if decisions.found:
        raise ModelError("the model turns values of tensors into Python numbers, which tracing would freeze")


def _restore_inputs(
    graph: ir.Graph,
    inputs: Sequence[str],
    examples: Mapping[str, torch.Tensor],
    symbolic: Mapping[str, Mapping[int, str]],
) -> None:
    """All inputs in order: tracing drops those that nothing reads."""
    present = {v.name: v for v in graph.inputs}
    wanted = []
    for name, example in zip(inputs, examples.values(), strict=True):
        array = example.cpu().numpy()
        shape = [symbolic[name].get(axis, size) for axis, size in enumerate(array.shape)]
        dtype = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        wanted.append(present.get(name) or ir.Value(name=name, shape=ir.Shape(shape), type=dtype))
    graph.inputs.clear()
    graph.inputs.extend(wanted)


def _restore_names(graph: ir.Graph, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Initializers under the names of the module's tensors.

    Those that tracing renamed are known by their value, as it is or transposed, where only one has it.
    """
    for name in [n for n in graph.initializers if n.startswith("module.")]:
        _rename(graph, name, name.removeprefix("module."))
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = {n for t in tensors.values() for n in (t.name, *t.tied_to)}
    renamed = {
        n: v.const_value.numpy() for n, v in graph.initializers.items() if n not in names and v.const_value is not None
    }
    for tensor in tensors.values():
        if {tensor.name, *tensor.tied_to} & set(graph.initializers):
            continue
        own = state[tensor.name].detach().cpu().numpy()
        same = [n for n, array in renamed.items() if _equal(array, own)]
        turned = [n for n, array in renamed.items() if own.ndim == 2 and _equal(array, own.T)]
        if own.ndim == 0 or own.size < 2 or len({*same, *turned}) != 1:
            continue
        old = (same or turned)[0]
        if not same:
            _transpose(graph, old, own)
        _rename(graph, old, tensor.name)
        del renamed[old]


def _rename(graph: ir.Graph, old: str, new: str) -> None:
    value = graph.initializers.pop(old)
    value.name = new
    graph.register_initializer(value)


def _transpose(graph: ir.Graph, name: str, own: np.ndarray[Any, Any]) -> None:
    """Hold `own` in the initializer `name`, and transpose it for those that read it."""
    value = graph.initializers[name]
    node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", [1, 0])], name=f"{name}.transpose")
    node.outputs[0].name, node.outputs[0].type = f"{name}.transposed", value.type
    value.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, value)
    value.const_value, value.shape = ir.tensor(np.ascontiguousarray(own)), ir.Shape(own.shape)
    graph.insert_before(graph[0], node)


def _equal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)
