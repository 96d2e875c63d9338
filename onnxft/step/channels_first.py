"""Trained convolutions whose values lie channels first, as (C, N, *space), so that no product transposes its data.

A 1x1 convolution is then one product, of its weight and the pixels of all pictures side by side, and so are both of its
gradients. A depthwise convolution over few positions is a product with a matrix for each channel. What works element by
element between them does the same in either layout, and so does a mean over space, since only two axes change places.
Where a region of such nodes begins and ends its values are transposed; `layout_regions.py` chooses those that pay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir as ir

from onnxft.grad.rules.convolution_matrix import by_matrix
from onnxft.grad.rules.windows import windows
from onnxft.graph.builder import Op, reshape
from onnxft.graph.shapes import Dim, dims, set_dims, static_dims
from onnxft.step.layout_regions import find_regions


def put_channels_first(op: Op, parameters: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> None:
    """Lay values channels first where it pays, in place, before the graph is differentiated.

    The old convolutions stay without readers until the graph is finished: the builder numbers its nodes by their count.

    Args:
        op: writes into the graph.
        parameters: those that are trained.
        outputs: what the graph is to compute; those in a region are replaced where they are outputs of the graph.
    """
    graph = op.builder.graph
    inside = find_regions(outputs, parameters)
    if not inside:
        return
    laid: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in inside]:
        (old,) = node.outputs
        shape = dims(old)
        new = laid[old] = _convolution(op, node, laid) if node.op_type == "Conv" else _elementwise(op, node, laid)
        users = [(user, place) for user, place in old.uses() if user not in inside]
        places = [place for place, output in enumerate(graph.outputs) if output is old]
        if users or places:
            last = _swapped(op, new)
            set_dims(last, shape)
        for user, place in users:
            user.replace_input_with(place, last)
        for place in places:
            graph.outputs[place] = last
    graph.sort()


def _convolution(op: Op, node: ir.Node, laid: dict[ir.Value, ir.Value]) -> ir.Value:
    x, w, *rest = node.inputs
    assert x is not None and w is not None
    bias = rest[0] if rest else None
    group, over = node.attributes.get_int("group", 1), windows(node, x, node.outputs[0], static_dims(w, 2))
    x = _laid(op, x, len(dims(x)), laid)
    if group == 1:
        return _pointwise(op, x, w, bias)
    y = by_matrix(op, x, w, over, group)
    return y if bias is None else op.Add(y, reshape(op, bias, [group, *[1] * (len(dims(x)) - 1)]))


def _pointwise(op: Op, x: ir.Value, w: ir.Value, bias: ir.Value | None) -> ir.Value:
    """y = w x + b with the pixels of all pictures side by side: (M, C) (C, N * positions) + (M, 1)"""
    (m, c), (n, *space), positions = static_dims(w)[:2], dims(x)[1:], math.prod(static_dims(x, 2))
    pixels = n * positions if isinstance(n, int) else n if positions == 1 else f"{positions}*{n}"
    y = op.Gemm(reshape(op, w, [m, c]), reshape(op, x, [c, pixels]))
    if bias is not None:
        # Not within Gemm: the runtime first writes the bias to all of y then, and goes on from that.
        y = op.Add(y, reshape(op, bias, [m, 1]))
    return reshape(op, y, [m, n, *space])


def _elementwise(op: Op, node: ir.Node, laid: dict[ir.Value, ir.Value]) -> ir.Value:
    """Let the node itself read and compute values that lie channels first."""
    (y,) = node.outputs
    rank = max(len(dims(x)) for x in node.inputs if x is not None)
    for place, x in enumerate(node.inputs):
        if x is not None:
            node.replace_input_with(place, _laid(op, x, rank, laid))
    n, c, *space = dims(y)
    set_dims(y, [c, n, *space])
    return y


def _laid(op: Op, x: ir.Value, rank: int, laid: dict[ir.Value, ir.Value]) -> ir.Value:
    """`x` channels first; a constant, or a value for each channel, is a view that still meets values of this rank."""
    if x in laid:
        return laid[x]
    shape: list[Dim] = [*[1] * (rank - len(dims(x))), *dims(x)]
    if shape[0] == 1:
        return x if shape[1] == 1 else reshape(op, x, [shape[1], 1, *shape[2:]])
    laid[x] = _swapped(op, x)
    return laid[x]


def _swapped(op: Op, x: ir.Value) -> ir.Value:
    """(N, C, *space) -> (C, N, *space), or back"""
    n, c, *space = dims(x)
    y = op.Transpose(x, perm=[1, 0, *range(2, 2 + len(space))])
    set_dims(y, [c, n, *space])
    return y
