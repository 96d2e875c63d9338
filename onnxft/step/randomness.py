"""Random operators become `random` inputs, so that the host draws the numbers: repeatable everywhere."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.builder import Op, add_input
from onnxft.graph.shapes import dims
from onnxft.manifest import Distribution, Port, dimension_size

_UNIFORM = ("RandomUniform", "RandomUniformLike")
_NORMAL = ("RandomNormal", "RandomNormalLike")


def randomness_to_inputs(op: Op) -> list[Port]:
    """Replace every random operator of the graph of `op`, in place, and return the new inputs.

    Dropout(x) becomes x * mask; uniform and normal numbers become the input itself; Bernoulli(p)
    becomes (uniform < p).

    Raises:
        ModelError: a random operator whose shape or ratio is only known at run time.
    """
    graph = op.builder.graph
    ports: list[Port] = []
    for node in list(graph):
        if node.op_type == "Dropout":
            _replace_dropout(op, node, ports)
        elif node.op_type in (*_UNIFORM, *_NORMAL):
            low, high = ("low", "high") if node.op_type in _UNIFORM else ("mean", "scale")
            what = Distribution(
                "uniform" if node.op_type in _UNIFORM else "normal",
                low=node.attributes.get_float(low, 0.0),
                high=node.attributes.get_float(high, 1.0),
            )
            _replace(node, _input(op, node, node.outputs[0], what, ports))
        elif node.op_type == "Bernoulli":
            _replace_bernoulli(op, node, ports)
        elif node.op_type == "Multinomial":
            raise ModelError(
                f"the random operator Multinomial '{node.name}' cannot be in a training graph: it draws by weights "
                "that the model computes. Export with dropout=False (--no-dropout), or draw with torch.rand."
            )
    return ports


def random_operators(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that draw numbers when the graph runs; a Dropout in inference form draws none."""
    return [node for node in graph if _draws(node)]


def _draws(node: ir.Node) -> bool:
    if node.op_type == "Dropout":
        return bool(_constant(node, 2, 0.0)) and _constant(node, 1, 0.5) > 0.0
    return node.op_type in (*_UNIFORM, *_NORMAL, "Bernoulli", "Multinomial")


def _replace_dropout(op: Op, node: ir.Node, ports: list[Port]) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    ratio = _constant(node, 1, 0.5)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise ModelError(f"the mask of Dropout '{node.name}' is read by the model; export with dropout=False.")
    if not _constant(node, 2, 0.0) or ratio == 0.0:
        _replace(node, x)
        return
    if not 0.0 < ratio < 1.0:
        raise ModelError(f"Dropout '{node.name}' has the ratio {ratio}; it must be at least 0 and below 1.")
    _set_type(y, x)
    mask = _input(op, node, y, Distribution("dropout", ratio=ratio), ports)
    graph = op.builder.graph
    product = ir.Node("", "Mul", [x, mask], name=f"{node.name}.mask")
    product.outputs[0].name = f"{y.name}.masked"
    _set_type(product.outputs[0], x)
    graph.insert_before(node, product)
    _replace(node, product.outputs[0])


def _replace_bernoulli(op: Op, node: ir.Node, ports: list[Port]) -> None:
    """y = (uniform < x) in the type of y"""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    numbers = _input(op, node, x, Distribution("uniform"), ports)
    graph = op.builder.graph
    less = ir.Node("", "Less", [numbers, x], name=f"{node.name}.less")
    less.outputs[0].name, less.outputs[0].shape = f"{y.name}.less", x.shape
    less.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    dtype = y.dtype if y.dtype is not None else x.dtype
    assert dtype is not None
    cast = ir.Node("", "Cast", [less.outputs[0]], [ir.AttrInt64("to", int(dtype))], name=f"{node.name}.cast")
    cast.outputs[0].name, cast.outputs[0].shape = f"{y.name}.drawn", x.shape
    cast.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(node, [less, cast])
    _replace(node, cast.outputs[0])


def _input(op: Op, node: ir.Node, like: ir.Value, what: Distribution, ports: list[Port]) -> ir.Value:
    """The input that stands for `node`, in the shape of `like`, whose dimensions a session must know."""
    shape = dims(like)
    named = {d: 1 for v in op.builder.graph.inputs for d in dims(v) if isinstance(d, str)}
    known = tuple(d for d in shape if d is not None and dimension_size(d, named) is not None)
    if like.dtype is None or len(known) < len(shape):
        raise ModelError(
            f"the shape {list(shape)} of the random {node.op_type} '{node.name}' is only known at run time. Export "
            "with dropout=False (--no-dropout), or give it a static shape besides the batch."
        )
    name = f"random.{len(ports)}"
    ports.append(Port(name, "random", like.dtype.numpy().name, known, distribution=what))
    return add_input(op, name, like.dtype, known)


def _set_type(value: ir.Value, like: ir.Value) -> None:
    value.type, value.shape = like.type, like.shape


def _replace(node: ir.Node, value: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)


def _constant(node: ir.Node, index: int, default: float) -> float:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ModelError(f"input {index} of Dropout '{node.name}' is computed at run time. Export with dropout=False.")
    return float(tensor.numpy().reshape(()))
