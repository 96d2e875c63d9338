"""What a case of a rule is, and how its forward and gradient graphs are built and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import overrides
import torch
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.arrays import Array
from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder, cast_like, is_float
from onnxft.graph.normalize import OPSET
from onnxft.graph.shapes import dims

IR_VERSION = 10


@dataclass(frozen=True, eq=False)
class Range:
    """Uniformly drawn values, for operators that are not defined or not smooth everywhere."""

    shape: tuple[int, ...]
    low: float = 0.5
    high: float = 2.0


Spec = tuple[int, ...] | Range | Array | None
"""An input: a shape is drawn from the normal distribution, an array is itself, None is absent."""


@dataclass(frozen=True, eq=False)
class Case:
    """One use of an operator: its inputs, its attributes, and the same thing in torch."""

    op: str
    inputs: tuple[Spec, ...]
    torch: Callable[..., Any]
    """The inputs as tensors (None where absent) -> the outputs that the loss reads."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    """What this case is about, part of its name."""
    constant: tuple[int, ...] = ()
    """Inputs of floats that are initializers and not differentiated; integers are initializers anyway ..."""
    runtime: tuple[int, ...] = ()
    """... but for these, which are inputs of the graph."""
    frozen: tuple[int, ...] = ()
    """Inputs of floats that have no gradient."""
    outputs: int = 1
    read: int | tuple[int, ...] = 1
    """How many of the outputs the loss reads, or which."""
    batch: tuple[int, ...] = ()
    """Inputs whose axis 0 may be the symbolic batch."""
    named: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    """Inputs with other axes that may be symbolic: {input: {axis: name}}."""
    exempt: str = ""
    """Why no finite differences are taken."""
    float32: bool = False
    """Whether ONNX has the operator in float32 alone."""

    @property
    def name(self) -> str:
        """Name for test reports."""
        shapes = "-".join(_spell(x) for x in self.inputs)
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return " ".join(part for part in (self.op, shapes, attrs, self.note) if part)

    @property
    def values(self) -> list[Array | None]:
        """The inputs, floats as float64; the same at each call."""
        return _values(self)

    def differentiated(self) -> list[int]:
        """Indices of the inputs whose gradient is taken."""
        skip = {*self.constant, *self.frozen}
        return [i for i, x in enumerate(self.values) if x is not None and x.dtype.kind == "f" and i not in skip]


@dataclass
class Built:
    """Graph of a case: inputs x<i> and dy<i>, outputs loss, dx<i>."""

    model: ir.Model
    node: ir.Node
    xs: dict[int, ir.Value]
    dxs: dict[int, ir.Value]

    @property
    def proto(self) -> onnx.ModelProto:
        return ir.serde.serialize_model(self.model)


def forward(
    case: Case, dtype: type[np.floating[Any]], *, symbolic: bool = False
) -> tuple[Op, list[ir.Value | None], list[ir.Value]]:
    """A graph of the operator alone: its builder, its inputs and its outputs, those that are read with their shapes."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=case.op))
    values: list[ir.Value | None] = []
    for i, x in enumerate(case.values):
        values.append(None if x is None else _input(op, case, i, x, dtype, symbolic))
    outputs = getattr(op, case.op)(*_without_trailing_none(values), **case.attrs, _outputs=case.outputs)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    first = next(x for x in values if is_float(x))
    for i, y in enumerate(read(case, outputs)):
        y.shape, y.dtype = ir.Shape(_named(case, i, y)), y.dtype or first.dtype
    return op, values, outputs


def read(case: Case, outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """The outputs that the loss reads."""
    return [outputs[i] for i in (range(case.read) if isinstance(case.read, int) else case.read)]


def build(case: Case, dtype: type[np.floating[Any]], *, symbolic: bool = False) -> Built:
    """The case as a graph with its loss sum(y * dy) and the gradients of the inputs."""
    op, values, outputs = forward(case, dtype, symbolic=symbolic)
    graph = op.builder.graph
    first = next(x for x in values if is_float(x))
    losses = []
    for i, y in enumerate(read(case, outputs)):
        y = cast_like(op, y, first)
        dy = add_input(op, f"dy{i}", y.dtype, dims(y))
        losses.append(op.ReduceSum(op.Mul(y, dy), keepdims=0))
    loss = losses[0] if len(losses) == 1 else op.Sum(*losses)
    node = outputs[0].producer()
    xs = {i: values[i] for i in case.differentiated()}
    gradients = backward(op, loss, list(xs.values()))
    dxs = {i: op.Identity(gradients[x]) for i, x in xs.items()}
    for name, value in [("loss", loss), *((f"dx{i}", dx) for i, dx in dxs.items())]:
        value.name = name
        graph.outputs.append(value)
    model = ir.Model(graph, ir_version=IR_VERSION)
    RemoveUnusedNodesPass()(model)
    return Built(model, node, xs, dxs)


def feeds(case: Case, dtype: type[np.floating[Any]]) -> dict[str, Array]:
    """Values of the graph inputs x<i> and dy<i>."""
    found = {f"x{i}": _typed(x, dtype) for i, x in enumerate(case.values) if x is not None and _is_fed(case, i)}
    for i, y in enumerate(forward_in_torch(case)):
        found[f"dy{i}"] = np.random.default_rng(90 + i).normal(size=y.shape).astype(dtype)
    return found


def torch_outputs(case: Case, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """What the case computes, in torch."""
    y = case.torch(*tensors)
    return list(y) if isinstance(y, (list, tuple)) else [y]


def forward_in_torch(case: Case) -> list[Array]:
    """The outputs that the loss reads, in float64."""
    return [y.numpy() for y in torch_outputs(case, [_tensor(x) for x in case.values])]


def torch_gradients(case: Case) -> dict[int, Array]:
    """Gradients by torch's autograd, in float64."""
    tensors = [_tensor(x) for x in case.values]
    for i in case.differentiated():
        tensors[i].requires_grad_()
    fed = feeds(case, np.float64)
    loss = sum((y * torch.tensor(fed[f"dy{i}"])).sum() for i, y in enumerate(torch_outputs(case, tensors)))
    loss.backward()
    return {i: tensors[i].grad.numpy() for i in case.differentiated()}


def run_runtime(model: onnx.ModelProto, inputs: dict[str, Array], threads: int = 1) -> dict[str, Array]:
    """Outputs by ONNX Runtime on the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    needed = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in needed}), strict=True))


def reference(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The evaluator of onnx, in float64 throughout and with the operators that it lacks."""
    return ReferenceEvaluator(model, new_ops=overrides.ALL)


@cache
def _values(case: Case) -> list[Array | None]:
    rng = np.random.default_rng(sum(map(ord, case.name)))
    found: list[Array | None] = []
    for spec in case.inputs:
        if isinstance(spec, Range):
            found.append(rng.uniform(spec.low, spec.high, spec.shape))
        elif isinstance(spec, tuple):
            found.append(rng.normal(size=spec))
        else:
            found.append(spec)
    return found


def _is_fed(case: Case, i: int) -> bool:
    x = case.values[i]
    assert x is not None
    return i not in case.constant and (x.dtype.kind == "f" or i in case.runtime)


def _input(op: Op, case: Case, i: int, x: Array, dtype: type[np.floating[Any]], symbolic: bool) -> ir.Value:
    x = _typed(x, dtype)
    if not _is_fed(case, i):
        return op.initializer(ir.tensor(x), name=f"x{i}")
    shape: list[int | str] = list(x.shape)
    if symbolic and i in case.batch:
        shape[0] = "batch"
    for axis, name in case.named.get(i, {}).items() if symbolic else ():
        shape[axis] = name
    return add_input(op, f"x{i}", ir.DataType.from_numpy(x.dtype), shape)


def _named(case: Case, i: int, y: ir.Value) -> list[int | str]:
    """The shape of output i with a name for each unknown dimension, as exporters give it."""
    batch = next((case.values[x].shape[0] for x in case.batch), None)
    sizes = forward_in_torch(case)[i].shape
    names = ["batch" if size == batch else f"y{i}_{axis}" for axis, size in enumerate(sizes)]
    shape = (
        dims(y)
        if y.shape is not None
        else [None if name == "batch" else n for n, name in zip(sizes, names, strict=True)]
    )
    return [name if d is None else d for d, name in zip(shape, names, strict=True)]


def _typed(x: Array, dtype: type[np.floating[Any]]) -> Array:
    """float32 is what an operator takes in that type alone."""
    return x.astype(dtype) if x.dtype == np.float64 else x


def _tensor(x: Array | None) -> Any:
    return None if x is None else torch.tensor(x)


def _without_trailing_none(values: list[ir.Value | None]) -> list[ir.Value | None]:
    while values[-1] is None:
        values = values[:-1]
    return values


def _spell(x: Spec) -> str:
    shape = x.shape if isinstance(x, (Range, np.ndarray)) else x
    return "none" if shape is None else "x".join(map(str, shape)) or "scalar"
