"""The gradient of a lowered operator equals that of torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from lowering_attention import ATTENTION, FUSED
from lowering_cases import Lowered, close, converted, fed, model_of, run
from lowering_tables import ACTIVATIONS, NORMALIZATION, POSITIONS
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder
from onnxft.graph.shapes import dims

CASES = [c for c in (*ACTIVATIONS, *NORMALIZATION, *POSITIONS, *ATTENTION, *FUSED) if c.torch is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "batch"])
def test_gradient_equals_torch(case: Lowered, symbolic: bool) -> None:
    model = ir.serde.deserialize_model(converted(model_of(case, symbolic=symbolic)))
    graph = model.graph
    op = builder(graph)
    y = graph.outputs[0]
    xs = [x for x in graph.inputs if x.dtype == ir.DataType.FLOAT]
    loss = op.ReduceSum(op.Mul(y, add_input(op, "dy", y.dtype, dims(y))), keepdims=0)
    gradients = backward(op, loss, xs)
    graph.outputs[:] = [op.Identity(gradients[x]) for x in xs]
    RemoveUnusedNodesPass()(model)
    values = fed(case)
    tensors = [None if v is None else torch.tensor(v) for v in case.values]
    for i, x in enumerate(tensors):
        if f"x{i}" in {x.name for x in xs}:
            x.requires_grad_()
    expected = case.torch(*[x for x in tensors if x is not None])
    dy = np.random.default_rng(8).normal(size=tuple(expected.shape)).astype(np.float32)
    expected.backward(torch.tensor(dy))
    found = run(ir.serde.serialize_model(model), {**values, "dy": dy}, "runtime")
    for x, dx in zip(xs, found, strict=True):
        # Twenty additions and more, in another order than torch's.
        close(dx, tensors[int(x.name[1:])].grad.numpy(), 1e-5)


@pytest.mark.parametrize("note", ["dead row", "added dead row"])
def test_a_row_that_may_attend_to_nothing_has_the_gradient_zero(note: str) -> None:
    case = next(c for c in ATTENTION if c.note == note and c.outputs == 1)
    model = ir.serde.deserialize_model(converted(model_of(case)))
    graph = model.graph
    op = builder(graph)
    q = graph.inputs[0]
    gradients = backward(op, op.ReduceSum(graph.outputs[0], keepdims=0), [q])
    graph.outputs[:] = [op.Identity(gradients[q])]
    RemoveUnusedNodesPass()(model)
    (dq,) = run(ir.serde.serialize_model(model), fed(case), "runtime")
    assert np.isfinite(dq).all()
    place = (1, 2, 0) if note == "dead row" else (1, slice(None), 2)
    assert (dq[place] == 0).all()
    assert (dq[0] != 0).any()
