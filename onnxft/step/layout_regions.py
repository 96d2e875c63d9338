"""Which nodes are worth rewriting so that their values lie channels first; see `channels_first.py`.

A region is made of trained convolutions that are products in that layout, and of what is as simple there as it was. Its
price is that of transposing values, there and back, where it begins and ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.grad.rules.convolution_matrix import fits_matrix
from onnxft.grad.rules.convolution_weight import choose, pointwise_at_once
from onnxft.grad.rules.windows import windows
from onnxft.graph.constants import constant_array
from onnxft.graph.shapes import dims, product, static_dims
from onnxft.graph.walk import after, nodes_of, reads
from onnxft.step.work import ELEMENTWISE

MOST_POSITIONS_PER_TAP = 2
"""Of a depthwise convolution. Above, the matrices take more memory than batches of usual size."""
_ELEMENTWISE = ELEMENTWISE - {"BatchNormalization", "Dropout"}


def find_regions(outputs: Iterable[ir.Value], parameters: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes of all regions that pay, of those that compute `outputs` and read what is trained."""
    nodes = nodes_of(outputs)
    trained = after(nodes, parameters)
    products = {node: _transposed_otherwise(node) for node in nodes if _is_product(node, trained)}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        for x in reads(node):
            readers.setdefault(x, []).append(node)
    choice = _Choice(products, trained, readers)
    return {node for region in _connected(nodes, products) for node in choice.best(region)}


@dataclass(frozen=True)
class _Choice:
    """What is transposed, in elements of a row, where some nodes are rewritten and others are not."""

    products: Mapping[ir.Node, int]
    """{convolution: what is transposed for it otherwise}."""
    trained: Collection[ir.Value]
    readers: Mapping[ir.Value, Sequence[ir.Node]]

    def best(self, region: Sequence[ir.Node]) -> set[ir.Node]:
        """The region without what is cheaper outside, node by node from its ends; nothing where the rest is too."""
        left: set[ir.Node] = set(region)
        before = 0
        while len(left) != before:
            before = len(left)
            for node in (*region, *reversed(region)):
                if node not in left:
                    continue
                more = self.transposed([node], left) - self.transposed([node], left - {node})
                otherwise = self.products.get(node, 0)
                if more > otherwise or (more == 0 and node not in self.products):
                    left.remove(node)
        otherwise = sum(self.products.get(node, 0) for node in left)
        return left if self.transposed(left, left) <= otherwise else set()

    def transposed(self, nodes: Iterable[ir.Node], inside: Collection[ir.Node]) -> int:
        """How much of what the nodes read and compute goes from one layout into the other, and its gradients back."""
        values = {v for node in nodes for v in (*moved(node), *node.outputs)}
        return sum(_elements(v) * (2 if v in self.trained else 1) for v in values if self._crosses(v, inside))

    def _crosses(self, value: ir.Value, inside: Collection[ir.Node]) -> bool:
        laid = [node in inside and value in moved(node) for node in self.readers.get(value, ())]
        return not all(laid) or value.is_graph_output() if value.producer() in inside else any(laid)


def moved(node: ir.Node) -> list[ir.Value]:
    """What a node of a region reads that is laid in another way for it: its first axis is that of pictures.

    The other operands of what works element by element are constants or one value for each channel.
    """
    known = [x for x in _read(node)[: None if node.op_type in _ELEMENTWISE else 1] if x.shape is not None]
    rank = max((len(dims(x)) for x in known), default=0)
    return [x for x in known if len(dims(x)) == rank and dims(x)[0] != 1]


def _connected(nodes: Iterable[ir.Node], products: Collection[ir.Node]) -> list[list[ir.Node]]:
    """Products and what keeps the layout behind them, as far as they are connected."""
    found: dict[ir.Node | None, list[ir.Node]] = {}
    for node in nodes:
        inner = [x for x in _read(node) if x.producer() in found]
        if node in products or (inner and _keeps_layout(node) and all(x in moved(node) for x in inner)):
            parts = {id(found[x.producer()]): found[x.producer()] for x in inner}
            region = [*(n for part in parts.values() for n in part), node]
            found.update(dict.fromkeys(region, region))
    return list({id(region): region for region in found.values()}.values())


def _keeps_layout(node: ir.Node) -> bool:
    """Whether the node works element by element, or takes means over space."""
    if node.domain or len(node.outputs) > 1 or any(v.shape is None for v in (*_read(node), *node.outputs)):
        return False
    data = moved(node)
    others = [x for x in _read(node) if x not in data]
    if not all(map(_is_known, (*data, *node.outputs))) or any(product(dims(x)) is None for x in others):
        return False
    if node.op_type == "ReduceMean":
        axes = constant_array(others[0]) if others else None
        return axes is not None and all(axis % len(dims(data[0])) > 1 for axis in axes.tolist())
    return node.op_type in _ELEMENTWISE or node.op_type == "GlobalAveragePool"


def _is_product(node: ir.Node, trained: Collection[ir.Value]) -> bool:
    """Whether the node is a trained convolution that is a product where its values lie channels first.

    1x1: where the gradient of its weight is one product for all pictures. Depthwise: where few positions are read, and
    the weight is not constant, `Conv` takes two to nine times as long on the CPU provider as a product with matrices.
    """
    if node.op_type != "Conv" or node.domain:
        return False
    (x, w, *_), (y,) = _read(node), node.outputs
    if w not in trained or not _is_known(x) or not _is_known(y):
        return False
    shape, group, over = static_dims(w), node.attributes.get_int("group", 1), windows(node, x, y, static_dims(w, 2))
    positions, taps = math.prod(v.outputs for v in over), math.prod(v.kernel for v in over)
    is_small = fits_matrix(shape, over, group) and positions <= MOST_POSITIONS_PER_TAP * taps
    return is_small or choose(shape, over, group) is pointwise_at_once


def _transposed_otherwise(node: ir.Node) -> int:
    """How many elements of a row are transposed for a convolution whose values lie pictures first.

    Its input and the gradient of its output, for the gradient of a weight; for a depthwise one, whose other products
    are of that kind too, both of either.
    """
    x, y = _read(node)[0], node.outputs[0]
    return (_elements(x) + _elements(y)) * (1 if node.attributes.get_int("group", 1) == 1 else 2)


def _is_known(x: ir.Value) -> bool:
    """Whether nothing but the number of pictures is symbolic, which has a name; of one alone no layout is another."""
    if x.shape is None or len(x.shape) < 2:
        return False
    n, *others = dims(x)
    several = n > 1 if isinstance(n, int) else n is not None and n.isidentifier()
    return several and product(others) is not None


def _elements(x: ir.Value) -> int:
    """In a row."""
    return math.prod(static_dims(x, 1))


def _read(node: ir.Node) -> list[ir.Value]:
    return [x for x in node.inputs if x is not None]
