"""The linear layers and convolutions of a graph: which parameter is the weight of which nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxft.graph.forward import Forward, Tensor

_PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Layer:
    """A weight, and the nodes that multiply data by it: y = x W^T, or a convolution."""

    weight: str
    shape: tuple[int, ...]
    """As it is stored: (out, in), (out, in, *kernel), or (in, out) where it is `transposed`."""
    transposed: bool
    nodes: tuple[ir.Node, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether the nodes are convolutions."""
        return self.nodes[0].op_type == "Conv"

    @property
    def features(self) -> tuple[int, int]:
        """How many the layer takes and gives."""
        first, second = self.shape[:2]
        return (first, second) if self.transposed else (second, first)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a convolution's window."""
        return self.shape[2:]


def find_layers(forward: Forward) -> tuple[dict[str, tuple[Layer, Layer]], dict[str, str]]:
    """The layers that can be adapted, in the order of the graph, and why others cannot.

    Returns:
        {weight: its layer in the training graph, and in the inference graph}, {other weight: reason}.
    """
    found: dict[str, tuple[Layer, Layer]] = {}
    unfit: dict[str, str] = {}
    order = {node: index for index, node in enumerate(forward.train.graph)}
    for tensor in forward.tensors:
        if tensor.kind != "parameter" or not tensor.used:
            continue
        train, infer = _layer(forward.train.graph, tensor), _layer(forward.infer.graph, tensor)
        if isinstance(train, Layer) and isinstance(infer, Layer):
            if train.transposed == infer.transposed:
                found[tensor.name] = train, infer
            else:
                unfit[tensor.name] = "training and inference multiply by it differently"
        elif reason := next((r for r in (train, infer) if isinstance(r, str) and r), ""):
            unfit[tensor.name] = reason
    return dict(sorted(found.items(), key=lambda item: order[item[1][0].nodes[0]])), unfit


def _layer(graph: ir.Graph, tensor: Tensor) -> Layer | str:
    """The layer whose weight the tensor is; or why that cannot be adapted, "" where no product reads it."""
    value = graph.initializers.get(tensor.name)
    if value is None:
        return ""
    uses = list(_uses(value))
    if not any(node.op_type in _PRODUCTS and index < 2 for node, index, _ in uses):
        return ""
    if tensor.dtype not in ("float32", "float64"):
        return f"its type is {tensor.dtype}"
    reasons = [reason for node, index, turned in uses if (reason := _unfit(node, index, turned, tensor))]
    if reasons:
        return reasons[0]
    ways = {_is_transposed(node, turned) for node, _, turned in uses}
    if len(ways) > 1:
        return "it is multiplied by as it is, and transposed"
    if len({node.op_type == "Conv" for node, _, _ in uses}) > 1:
        return "a convolution and a linear layer read it"
    return Layer(tensor.name, tensor.shape, ways.pop(), tuple(node for node, _, _ in uses))


def _uses(value: ir.Value, turned: bool = False) -> list[tuple[ir.Node, int, bool]]:
    """(node, index of its input, whether the matrix is transposed before), through Transposes."""
    found = []
    for node, index in value.uses():
        if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]:
            found += _uses(node.outputs[0], not turned)
        else:
            found.append((node, index, turned))
    return found


def _unfit(node: ir.Node, index: int, turned: bool, tensor: Tensor) -> str:
    if node.op_type not in _PRODUCTS:
        return f"{node.op_type} '{node.name}' reads it too"
    if index != 1:
        return f"it is no weight of {node.op_type} '{node.name}'"
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return f"its convolution has {groups} groups" if groups > 1 else ""
    if len(tensor.shape) != 2:
        return f"it has {len(tensor.shape)} dimensions"
    return "its Gemm transposes the data" if node.attributes.get_int("transA", 0) else ""


def _is_transposed(node: ir.Node, turned: bool) -> bool:
    """Whether the tensor is stored as (in, out)."""
    if node.op_type == "Conv":
        return False
    return turned == (node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)))
