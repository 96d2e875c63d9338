"""What the table of cases does not show: the reference itself, refusals, outputs left out, and what is not read."""

from __future__ import annotations

from dataclasses import replace

import cases_recurrent
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cases_recurrent import BOTH, HIDDEN, RAGGED, layer
from checking import build, feeds, run_runtime, torch_gradients
from reference_recurrent import recurrent

from onnxft.errors import GradientError
from onnxft.grad.backward import backward
from onnxft.grad.rules import recurrent_walk
from onnxft.graph.builder import add_input, builder

TORCH = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}
# The gates of torch in the order of ONNX.
ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def forward_model(case):
    """The operator of a case alone, with its outputs in order."""
    proto = build(case, np.float32).proto
    node = next(n for n in proto.graph.node if n.op_type == case.op)
    node.output[:] = [f"y{i}" for i in range(case.outputs)]
    del proto.graph.node[:]
    proto.graph.node.append(node)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in node.output)
    return proto


def tensors(case):
    return [None if v is None else torch.tensor(v) for v in case.values]


def without_size(attrs):
    return {k: v for k, v in attrs.items() if k != "hidden_size"}


@pytest.mark.parametrize("case", cases_recurrent.CASES, ids=lambda case: case.name)
def test_reference_equals_the_runtime(case):
    found = list(run_runtime(forward_model(case), feeds(case, np.float32)).values())
    expected = recurrent(case.op, *tensors(case), **without_size(case.attrs))
    for actual, y in zip(found, expected, strict=False):
        np.testing.assert_allclose(actual, y.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", TORCH)
def test_reference_equals_torch(op):
    attrs = {"linear_before_reset": 1} if op == "GRU" else {}
    case = layer(op, direction=BOTH, states="hc" if op == "LSTM" else "h", **attrs)
    x, w, r, bias, _, *states = tensors(case)
    module = TORCH[op](x.shape[2], HIDDEN, bidirectional=True).double()
    for d, end in enumerate(("", "_reverse")):
        for name, value in (("weight_ih", w), ("weight_hh", r), ("bias_ih", bias[:, : bias.shape[1] // 2]),
                            ("bias_hh", bias[:, bias.shape[1] // 2 :])):  # fmt: skip
            blocks = value[d].chunk(len(ORDER[op]))
            own = torch.cat([blocks[ORDER[op].index(i)] for i in range(len(blocks))])
            getattr(module, f"{name}_l0{end}").data.copy_(own)
    y, last = module(x, tuple(states) if op == "LSTM" else states[0])
    found = recurrent(op, *tensors(case), **without_size(case.attrs))
    both = y.unflatten(2, (2, HIDDEN)).transpose(1, 2)
    for actual, expected in zip(found, [both, *(last if op == "LSTM" else [last])], strict=False):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", TORCH)
@pytest.mark.parametrize("symbolic", [False, True], ids=["written out", "scan"])
def test_only_the_last_state_is_read_and_the_forward_node_leaves_the_others_out(op, symbolic):
    case = layer(op, read=(1,), direction=BOTH)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name=op)
    write = builder(graph)
    shapes = [list(v.shape) for v in case.values]
    if symbolic:
        shapes[0][:2] = ["sequence", "batch"]
    xs = [add_input(write, f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
    node = ir.Node("", op, xs, [ir.Attr(k, *attribute(v)) for k, v in case.attrs.items()], num_outputs=2)
    node.outputs[0].name = ""
    last = node.outputs[1]
    last.name, last.dtype, last.shape = "last", ir.DataType.FLOAT, ir.Shape([2, shapes[0][1], HIDDEN])
    graph.append(node)
    loss = write.ReduceSum(write.Mul(last, add_input(write, "dy0", last.dtype, last.shape)), keepdims=0)
    found = backward(write, loss, xs)
    for i, x in enumerate(xs):
        found[x].name = f"dx{i}"
        graph.outputs.append(found[x])
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    onnx.checker.check_model(proto, full_check=True)
    actual = run_runtime(proto, feeds(case, np.float32))
    for i, expected in torch_gradients(case).items():
        np.testing.assert_allclose(actual[f"dx{i}"], expected, rtol=1e-4, atol=1e-5)


def attribute(value):
    return (ir.AttributeType.INT, value) if isinstance(value, int) else (ir.AttributeType.STRING, value)


@pytest.mark.parametrize("op", TORCH)
@pytest.mark.parametrize("symbolic", [False, True], ids=["written out", "scan"])
def test_what_lies_in_the_padding_counts_for_nothing(op, symbolic):
    case = layer(op, lens=RAGGED, direction=BOTH)
    model, fed = build(case, np.float32, symbolic=symbolic).proto, feeds(case, np.float32)
    padding = np.arange(5)[:, None] >= RAGGED
    expected = run_runtime(model, fed)
    fed["x0"][padding], fed["dy0"][padding.nonzero()[0], :, padding.nonzero()[1]] = np.inf, np.nan
    actual = run_runtime(model, fed)
    assert np.all(actual["dx0"][padding] == 0)
    for i in case.differentiated():
        np.testing.assert_array_equal(actual[f"dx{i}"], expected[f"dx{i}"])


@pytest.mark.parametrize("case", cases_recurrent.CASES[::5], ids=lambda case: case.name)
def test_both_forms_of_the_walk_give_the_same(case, monkeypatch):
    found = []
    for limit in (0, 10**6):
        monkeypatch.setattr(recurrent_walk, "UNROLLED", limit)
        model = build(case, np.float32).proto
        assert ("Scan" in {n.op_type for n in model.graph.node}) == (limit == 0)
        found.append(run_runtime(model, feeds(case, np.float32)))
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-5, atol=1e-6)


def test_without_a_bias_nothing_is_summed_for_it():
    def sums(case):
        return sum(n.op_type == "ReduceSum" for n in build(case, np.float32).model.graph)

    assert sums(layer("LSTM", bias=False)) == sums(layer("LSTM")) - 1


def test_the_weight_gradient_is_one_product_over_all_steps():
    assert sum(n.op_type == "Gemm" for n in build(layer("LSTM", time=9), np.float32).model.graph) == 2


@pytest.mark.parametrize(
    ("op", "attrs", "words"),
    [
        ("LSTM", {"clip": 3.0}, ["clip = 3.0", "Export the model without it"]),
        ("GRU", {"layout": 1}, ["layout = 1", "Transpose"]),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, ["Sigmoid, Relu, Tanh", "Sigmoid, Tanh, Tanh", "yet"]),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, ["HardSigmoid, Tanh", "covers Sigmoid, Tanh", "yet"]),
        ("RNN", {"activations": ["Softsign"]}, ["Softsign", "covers Tanh or Relu or Sigmoid", "yet"]),
    ],
)
def test_what_the_rules_do_not_cover_is_refused(op, attrs, words):
    case = layer(op)
    with pytest.raises(GradientError) as caught:
        build(replace(case, attrs={**case.attrs, **attrs}), np.float32)
    for word in [op, *words]:
        assert word in str(caught.value)
