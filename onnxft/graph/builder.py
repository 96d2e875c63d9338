"""The vocabulary in which rules, losses and optimizers write ONNX nodes.

Nodes are written through `op.Add(x, 1.0)`: onnxscript's GraphBuilder infers shapes (symbolic ones
too) and gives Python constants the element type of the operand beside them. Every use of it is
behind this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from onnxft.errors import GradientError
from onnxft.graph.shapes import Dim, dims, normalize_axis, set_dims, symbolic_count


class Op(Protocol):
    """Writes nodes: `op.Add(x, y)` appends an Add and returns its output (a list where there are several)."""

    @property
    def builder(self) -> Any:
        """The onnxscript builder, which has the graph."""

    def initializer(self, tensor: ir.TensorProtocol, name: str | None = None) -> ir.Value:
        """Append a constant."""

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        """The operator of that name."""


PADDING_ROW = "onnxft.padding_row"
"""Key in the metadata of a Gather from an embedding's table: the row that gets no gradient from it."""
ADDED_ROWS = "onnxft.added_rows"
"""Key in the metadata of a ScatterElements that adds whole rows into zeros, indices (rows, 1) broadcast."""
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sqrt", "Neg")


class _Builder(GraphBuilder):  # type: ignore[misc]
    """A builder whose arguments are inputs by position and attributes by name: nothing is to be sorted."""

    def _partition_inputs_attributes(
        self, schema: object, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        return args, kwargs

    def _infer_shapes(self, node: ir.Node) -> None:
        """Half of all nodes combine values of one shape, or such a value and a number: no inference is asked."""
        inputs = [v for v in node.inputs if v is not None and v.shape is not None and v.dtype is not None]
        if node.op_type in _ARITHMETIC and len(inputs) == len(node.inputs):
            shapes = [v.shape for v in inputs if v.shape]
            if shapes and all(shape == shapes[0] for shape in shapes) and shapes[0].is_static():
                node.outputs[0].shape, node.outputs[0].type = ir.Shape(shapes[0]), inputs[0].type
                return
        super()._infer_shapes(node)


def builder(graph: ir.Graph) -> Op:
    """A builder that appends to `graph`; use one per graph, since it names the constants."""
    return cast(Op, _Builder(graph).op)


def body(op: Op, write: Callable[..., list[ir.Value]], inputs: Sequence[tuple[ir.Value, Sequence[Dim]]]) -> ir.Graph:
    """A graph for an attribute such as Scan's `body`: what `write(op, *inputs)` writes and returns.

    Each input is given as a value of its element type and a shape. The body may read the values around
    it. Its constants are initializers of the outermost graph; its names differ from all names there.
    """
    outer = op.builder
    scope = f"body_{outer.graph.num_nodes()}"
    formal = [ir.val(f"{scope}.input_{i}", like.dtype, list(shape)) for i, (like, shape) in enumerate(inputs)]
    graph = ir.Graph(formal, [], nodes=[], opset_imports=dict(outer.graph.opset_imports), name=scope)
    inner = GraphBuilder(graph, parent=outer)
    inner.push_module(scope)
    graph.outputs.extend(write(cast(Op, inner.op), *formal))
    return graph


def add_input(op: Op, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
    """Append an input to the graph of `op`."""
    value: ir.Value = op.builder.input(name, dtype, list(shape))
    return value


def reshape(op: Op, x: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    """`x` with the given shape: of the symbolic and unknown dimensions, one may be neither of `x` nor of an input."""
    if dims_equal(x, shape):
        return x
    target = [d if isinstance(d, int) else -1 for d in shape]
    if target.count(-1) > 1 and 0 not in target:
        pairs = zip(target, shape, [*dims(x), *[None] * len(shape)], strict=False)
        target = [0 if d == own and _is_named(d) else t for t, d, own in pairs]  # 0 copies a dimension
    y = op.Reshape(x, target if target.count(-1) <= 1 else _target(op, x, shape))
    set_dims(y, shape)
    return y


def _target(op: Op, x: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    """A target for Reshape that reads symbolic dimensions from the inputs of the graph that have them."""
    places = {d: (v, i) for v in op.builder.graph.inputs for i, d in enumerate(dims(v)) if isinstance(d, str)}
    unknown = [i for i, d in enumerate(shape) if not isinstance(d, int) and d not in places]
    if len(unknown) > 1:
        raise GradientError(f"'{x.name}' cannot take the shape {list(shape)}: more than one dimension is not static")
    parts: list[Any] = []
    for d in shape:
        if isinstance(d, str) and d in places:
            value, axis = places[d]
            parts.append(op.Shape(value, start=axis, end=axis + 1))
        else:
            parts.append([d if isinstance(d, int) else -1])
    return op.Concat(*parts, axis=0)


def _is_named(dim: Dim) -> bool:
    """Whether equal names mean equal sizes: those that inference makes up (unk__0) may come twice."""
    return isinstance(dim, str) and not dim.startswith("unk")


def reshape_like(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """`x` with the shape of `like`; read at run time where more than one dimension is symbolic."""
    shape = dims(like)
    if symbolic_count(shape) <= 1:
        return reshape(op, x, shape)
    y = op.Reshape(x, op.Shape(like))
    set_dims(y, shape)
    return y


def expand_like(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """`x` broadcast to the shape of `like`."""
    if dims_equal(x, dims(like)):
        return x
    shape = dims(like)
    target = [d for d in shape if isinstance(d, int)] if symbolic_count(shape) == 0 else op.Shape(like)
    y = op.Expand(x, target)
    set_dims(y, shape)
    return y


def dims_equal(x: ir.Value, shape: Sequence[Dim]) -> bool:
    """Whether the shape of `x` is known to be `shape` (unknown dimensions are equal to nothing)."""
    return x.shape is not None and None not in shape and dims(x) == tuple(shape)


def swap_last_two(op: Op, x: ir.Value) -> ir.Value:
    """Transpose of the last two axes."""
    rank = len(dims(x))
    return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def constant(op: Op, value: object, like: ir.Value) -> ir.Value:
    """A constant (scalar, nested list or array) with the element type of `like`."""
    assert like.dtype is not None
    return table(op, np.asarray(value, like.dtype.numpy()))


def table(op: Op, array: NDArray[Any]) -> ir.Value:
    """A constant with the element type of `array`: a mask, or a table of indices."""
    return op.initializer(ir.tensor(array), name=f"constant_{len(op.builder.root.graph.initializers)}")


def zeros_like(op: Op, x: ir.Value) -> ir.Value:
    """Zeros of the shape of `x` (x - x would keep its NaN)."""
    return expand_like(op, constant(op, [0.0], x), x)


def sum_to(op: Op, dx: ir.Value, x: ir.Value) -> ir.Value:
    """Sum `dx` over the axes along which `x` was broadcast, so that it has the shape of `x`.

    An axis is summed where `x` has 1 and `dx` has not: for an unknown dimension of `dx` that turns
    out to be 1 the sum changes nothing. GradientError where the two shapes cannot be related.
    """
    target, source = dims(x), dims(dx)
    extra = len(source) - len(target)
    if extra < 0:
        raise GradientError(f"gradient {list(source)} of '{x.name}' has a lower rank than its shape {list(target)}")
    if extra > 0:
        dx = op.ReduceSum(dx, list(range(extra)), keepdims=0)
        source = source[extra:]
        set_dims(dx, source)
    axes = [i for i, (t, s) in enumerate(zip(target, source, strict=True)) if t == 1 and s != 1]
    for t, s in zip(target, source, strict=True):
        if t != 1 and isinstance(t, int) and isinstance(s, int) and t != s:
            raise GradientError(f"gradient {list(source)} does not fit the shape {list(target)} of '{x.name}'")
        if t != 1 and isinstance(t, str) and s is not None and t != s:
            raise GradientError(
                f"gradient {list(source)} of '{x.name}' cannot be related to its symbolic shape {list(target)}. "
                "Export the model with one name for each symbolic dimension."
            )
        if t is None:
            raise GradientError(
                f"'{x.name}' has the unknown dimension in {list(target)}, so broadcasting cannot be undone. "
                "Export the model with static shapes except for the batch (and sequence) dimension."
            )
    if axes:
        dx = op.ReduceSum(dx, axes, keepdims=1)
    set_dims(dx, target)
    return dx


def static_ints(node: ir.Node, index: int, attribute: str | None = None) -> list[int] | None:
    """Integers that an operator takes as its `index`-th input or as an attribute; None where absent.

    GradientError if they are only known at run time.
    """
    if attribute is not None and attribute in node.attributes:
        return list(node.attributes[attribute].as_ints())
    array = static_array(node, index)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def static_array(node: ir.Node, index: int) -> NDArray[Any] | None:
    """The constant that an operator takes as its `index`-th input; None where absent.

    GradientError if it is only known at run time.
    """
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    value = node.inputs[index]
    assert value is not None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise GradientError(
            f"input {index} of {node.op_type} '{node.name}' ('{value.name}') is computed at run time; its rule needs "
            "a constant. Export the model with static shapes except for the batch dimension."
        )
    return np.asarray(tensor.numpy())


def static_axis(node: ir.Node, default: int) -> int:
    """The `axis` attribute, counted from the front."""
    first = node.inputs[0]
    assert first is not None
    return normalize_axis(node.attributes.get_int("axis", default), len(dims(first)))


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` has a floating-point element type (only those carry gradients)."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def cast_like(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """`x` with the element type of `like`."""
    assert like.dtype is not None
    return x if x.dtype == like.dtype else op.Cast(x, to=int(like.dtype))


def count(op: Op, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Number of values along `axes` as a scalar with the element type of `x`; symbolic axes are read at run time."""
    shape = dims(x)
    static = math.prod(d for axis in axes if isinstance(d := shape[axis], int))
    symbolic = [axis for axis in axes if not isinstance(shape[axis], int)]
    number = constant(op, float(static), x)
    for axis in symbolic:
        number = op.Mul(number, cast_like(op, op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0]), x))
    return number


def slice_axis(op: Op, x: ir.Value, axis: int, start: int, stop: int, step: int = 1) -> ir.Value:
    """`x[start:stop:step]` along `axis`, which is static."""
    if start == 0 and step == 1 and stop == dims(x)[axis]:
        return x
    return op.Slice(x, [start], [stop], [axis], [step])


def split(op: Op, x: ir.Value, parts: int, axis: int) -> list[ir.Value]:
    """`x` cut into equal parts along `axis`, which is static."""
    if parts == 1:
        return [x]
    return list(cast(Sequence[ir.Value], op.Split(x, num_outputs=parts, axis=axis, _outputs=parts)))


def flip_axis(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """`x` in reverse order along `axis`."""
    return op.Slice(x, [-1], [np.iinfo(np.int64).min], [axis], [-1])


def pad_axis(op: Op, x: ir.Value, axis: int, before: int, after: int, fill: ir.Value | None = None) -> ir.Value:
    """`x` with `before` and `after` positions of `fill` (0 if None) added along `axis`."""
    if before == after == 0:
        return x
    rank = len(dims(x))
    pads = [0] * (2 * rank)
    pads[axis], pads[axis + rank] = before, after
    return op.Pad(x, pads) if fill is None else op.Pad(x, pads, fill)


def pad_to(op: Op, dy: ir.Value, x: ir.Value, axis: int, start: int | ir.Value) -> ir.Value:
    """`dy`, taken from `x` at `start` (a number or (1,)) of `axis`, among zeros; its place is computed at run time.

    A negative start counts from the end; one beyond either end is that end, as for Slice.
    """
    rank = len(dims(x))
    size, taken = (op.Shape(v, start=axis, end=axis + 1) for v in (x, dy))
    if isinstance(start, int):
        before = op.Min(size, [start]) if start >= 0 else op.Max(op.Add(size, [start]), [0])
    else:
        start = op.Cast(start, to=int(ir.DataType.INT64))
        before = op.Where(op.Less(start, [0]), op.Max(op.Add(size, start), [0]), op.Min(start, size))
    after = op.Sub(op.Sub(size, before), taken)
    pads = [[0] * axis, before, [0] * (rank - 1), after, [0] * (rank - 1 - axis)]
    padded = op.Pad(dy, op.Concat(*(part for part in pads if part != []), axis=0))
    set_dims(padded, [*dims(dy)[:axis], dims(x)[axis], *dims(dy)[axis + 1 :]])
    return padded


def per_channel(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """`x` (channels,) as (channels, 1, ...), so that it meets axis 1 of `like`."""
    return reshape(op, x, [*dims(x), *[1] * (len(dims(like)) - 2)])
