"""The blocks of a table's gradient are those of the whole, bit for bit, and the whole is not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.grad.backward import backward
from onnxft.grad.rules.indexing import SMALL_TABLE
from onnxft.graph.builder import PADDING_ROW, Op, add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import dims, set_dims
from onnxft.step.picked_rows import rows_of_gradient
from onnxft.step.row_blocks import RowBlock

ROWS, WIDTH = SMALL_TABLE + 27, 5
BLOCKS = [RowBlock("w", rows) for rows in ((0, 40), (40, 41), (41, ROWS))]
Lookup = Callable[[Op, ir.Value, ir.Value], ir.Value]


def plain(op: Op, w: ir.Value, i: ir.Value) -> ir.Value:
    return op.Gather(w, i, axis=0)


def padded(op: Op, w: ir.Value, i: ir.Value) -> ir.Value:
    y = op.Gather(w, i, axis=0)
    node = y.producer()
    assert node is not None
    node.metadata_props[PADDING_ROW] = "3"
    return y


def twice(op: Op, w: ir.Value, i: ir.Value) -> ir.Value:
    return op.Add(op.Gather(w, i, axis=0), op.Gather(w, op.Mul(i, i), axis=0))


def single_values(op: Op, w: ir.Value, i: ir.Value) -> ir.Value:
    """Not whole rows: in each column others."""
    columns = op.Concat(*[op.Unsqueeze(op.Mul(i, n), [1]) for n in range(WIDTH)], axis=1)
    set_dims(columns, [dims(i)[0], WIDTH])
    return op.GatherElements(w, columns, axis=0)


def along_columns(op: Op, w: ir.Value, i: ir.Value) -> ir.Value:
    return op.Transpose(op.Gather(w, i, axis=1), perm=[1, 0])


CASES: dict[str, tuple[Lookup, NDArray[np.integer[Any]], bool]] = {
    # name: the lookup, its indices, whether the gradient is left in its rows
    "each once": (plain, np.array([7, 2, 40, 90]), True),
    "repeated": (plain, np.array([7, 90, 7, 40, 7, 90, 0]), True),
    "one row alone": (plain, np.array([40] * 9), True),
    "from the end": (plain, np.array([-1, ROWS - 1, -ROWS, 0, -1, 12]), True),
    "of many dimensions": (plain, np.array([[[5, 6, 5]], [[41, 5, 0]]]), True),
    "of 32 bits": (plain, np.array([5, 88, 5, -3], np.int32), True),
    "padding": (padded, np.array([3, 5, 3, 41, 5]), True),
    "two lookups": (twice, np.array([5, 2, 5, 9, 0]), False),
    "single values": (single_values, np.array([5, 2, 5, 9, 0]), False),
    "along the columns": (along_columns, np.array([4, 2, 4, 1]), False),
}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.DOUBLE], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_the_gradient(name: str, dtype: ir.DataType) -> None:
    lookup, indices, in_rows = CASES[name]
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="lookup")
    op = builder(graph)
    w = add_input(op, "w", dtype, [ROWS, WIDTH])
    y = lookup(op, w, add_input(op, "i", ir.DataType.from_numpy(indices.dtype), ["batch", *indices.shape[1:]]))
    weights = add_input(op, "weights", dtype, dims(y))
    gradient = backward(op, op.ReduceSum(op.Mul(y, weights), keepdims=0), [w])[w]
    parts = rows_of_gradient(op, gradient, BLOCKS)
    rng = np.random.default_rng(len(name))
    shape = [d if isinstance(d, int) else len(indices) for d in dims(y)]
    feeds = {
        "w": rng.standard_normal((ROWS, WIDTH)).astype(dtype.numpy()),
        "i": indices,
        "weights": rng.standard_normal(shape).astype(dtype.numpy()),
    }
    (whole,) = _run(graph, [op.Identity(gradient)], feeds)
    found = _run(graph, parts, feeds)
    for block, part in zip(BLOCKS, found, strict=True):
        start, stop = block.rows or (0, ROWS)
        assert part.tobytes() == whole[start:stop].tobytes(), block
    assert whole.any()
    # What is left in the graph makes nothing of the table's size where the gradient stays in its rows.
    graph.outputs[:] = parts
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=IR_VERSION))
    made = [v for node in graph for v in node.outputs if v.dtype == dtype and dims(v)[:1] == (ROWS,)]
    assert (not made) == in_rows


def test_one_block_is_the_gradient() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    w = add_input(op, "w", ir.DataType.FLOAT, [ROWS, WIDTH])
    y = plain(op, w, add_input(op, "i", ir.DataType.INT64, ["batch"]))
    gradient = backward(op, op.ReduceSum(y, keepdims=0), [w])[w]
    assert rows_of_gradient(op, gradient, [RowBlock("w")]) == [gradient]


def _run(graph: ir.Graph, outputs: list[ir.Value], feeds: dict[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    graph.outputs[:] = outputs
    graph.sort()
    model = ir.Model(graph, ir_version=IR_VERSION)
    clone = model.clone()
    RemoveUnusedNodesPass()(clone)
    session = ort.InferenceSession(ir.to_proto(clone).SerializeToString(), providers=["CPUExecutionProvider"])
    read = {v.name for v in session.get_inputs()}
    return list(session.run(None, {name: value for name, value in feeds.items() if name in read}))
