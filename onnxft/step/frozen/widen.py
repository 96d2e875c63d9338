"""Widening stored weights in a graph, where they are read.

int8:            w = DequantizeLinear(q, s), with a scale s for each channel
half precision:  w = Cast(h)
embeddings:      rows are looked up first and widened then, so that the table in float32 never exists
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxft.graph.constants import add_constant
from onnxft.graph.shapes import Dim, dims
from onnxft.step.frozen.narrow import Narrow
from onnxft.step.frozen.readers import readers

STORED = ".stored"
"""What the name of a stored weight ends with, after that of the weight."""
SCALE = ".stored.scale"
"""Likewise of its scales."""
FLOAT = ir.DataType.FLOAT


def widen_where_read(model: ir.Model, weights: Mapping[str, Narrow]) -> None:
    """Put `weights` in the place of those of the same names, in place."""
    for name, stored in weights.items():
        if name in model.graph.initializers:
            _Widening(model.graph, name, stored).run()
    common.TopologicalSortPass()(model)


def put_float32(model: ir.Model, values: Mapping[str, NDArray[Any]]) -> None:
    """Give weights other values, in place."""
    for name, array in values.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)


class _Widening:
    """One weight of a graph on its way to fewer bytes."""

    def __init__(self, graph: ir.Graph, name: str, stored: Narrow) -> None:
        self._graph, self._name, self._narrow = graph, name, stored
        self._weight = graph.initializers[name]
        self._readers = readers(self._weight, graph) or []
        values = stored.values
        # The runtime makes MatMulNBits of DequantizeLinear, perhaps a Transpose, and MatMul, which rounds the data to
        # int8 too unless told otherwise; and a Transpose right behind takes int8 for uint8 in graphs for OpenVINO. It
        # does neither where a Squeeze stands between, so the weight is stored with one more axis.
        self._spaced = stored.scale is not None and not all(reader.looks_up for reader in self._readers)
        if self._spaced:
            values = np.expand_dims(values, 1)
        self._stored = add_constant(graph, f"{name}{STORED}", ir.tensor(values, name=f"{name}{STORED}"))
        if stored.scale is not None:
            self._scale = add_constant(graph, f"{name}{SCALE}", ir.tensor(stored.scale, name=f"{name}{SCALE}"))

    def run(self) -> None:
        for reader in self._readers:
            if reader.looks_up:
                self._look_up(reader.node)
        if self._weight.uses():
            self._weight.replace_all_uses_with(self._widened())
        self._graph.initializers.pop(self._name)

    def _widened(self) -> ir.Value:
        """The whole weight."""
        name, shape = f"{self._name}.widened", dims(self._stored)
        if not self._spaced:
            return self._node("Cast", [self._stored], name, shape, FLOAT, to=int(FLOAT))
        axis = self._narrow.axis
        inputs = [self._stored, self._scale]
        wide = self._node("DequantizeLinear", inputs, f"{name}.spaced", shape, FLOAT, axis=axis + (axis > 0))
        return self._squeezed(wide, 1, name)

    def _look_up(self, node: ir.Node) -> None:
        """Rows of the weight: they are taken from what is stored, and widened then."""
        y, indices = node.outputs[0], node.inputs[1]
        assert indices is not None and self._stored.dtype is not None
        name, shape = f"{self._name}.{y.name}", dims(y)
        before, rank = dims(indices), self._narrow.values.ndim
        taken = (*before, *dims(self._stored)[1:])
        rows = self._node("Gather", [self._stored, indices], f"{name}.stored", taken, self._stored.dtype, axis=0)
        if self._spaced:
            rows = self._squeezed(rows, len(before), f"{name}.rows")
        wide = self._node("Cast", [rows], f"{name}.widened", shape, FLOAT, to=int(FLOAT))
        if self._narrow.scale is not None:
            scale = self._node("Gather", [self._scale, indices], f"{name}.scale", before, FLOAT, axis=0)
            axes = add_constant(self._graph, f"{name}.axes", ir.tensor([-i for i in range(1, rank)]))
            scale = self._node("Unsqueeze", [scale, axes], f"{name}.scales", (*before, *[1] * (rank - 1)), FLOAT)
            wide = self._node("Mul", [wide, scale], f"{name}.scaled", shape, FLOAT)
        own, y.name = y.name, f"{name}.float32"
        y.replace_all_uses_with(wide, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        wide.name = own

    def _squeezed(self, value: ir.Value, axis: int, name: str) -> ir.Value:
        """Without `axis`, whose size is 1."""
        assert value.dtype is not None
        shape, axes = list(dims(value)), add_constant(self._graph, f"{name}.axis", ir.tensor([axis]))
        del shape[axis]
        return self._node("Squeeze", [value, axes], name, shape, value.dtype)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        shape: Sequence[Dim],
        dtype: ir.DataType,
        **attributes: int | list[int],
    ) -> ir.Value:
        """The output of a new node; the graph is sorted afterwards."""
        node = ir.node(
            op_type, inputs, attributes, name=f"{name}/{op_type}", outputs=[ir.val(name, dtype, list(shape))]
        )
        self._graph.append(node)
        return node.outputs[0]
