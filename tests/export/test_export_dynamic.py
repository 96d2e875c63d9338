"""Symbolic dimensions besides the batch, and the export by tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import onnxft
from onnxft.errors import ModelError
from onnxft.exporters import legacy
from onnxft.exporters.pytorch import export_module
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH
from onnxft.manifest_file import read_manifest

DYNAMIC = {"x": {1: "sequence"}}
X = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    """Reads a state of its own, a slice of a table, the first and the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.table = nn.Parameter(torch.randn(9, 4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.start.expand(x.shape[0], 1, 4), x + self.table[: x.shape[1]]], 1)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return self.fc((weights @ x)[:, 0] + x[:, -1] + x[:, 1:-1].mean(1))


@pytest.mark.parametrize("length", [4, 9])
def test_a_session_fixes_the_length(length: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Tokens()
    artifact = onnxft.export(module, X, tmp_path / "a", dynamic_shapes=DYNAMIC)
    assert read_manifest(artifact).dimensions == {"sequence": 9}
    x, labels = np.random.default_rng(2).standard_normal((2, length, 4)).astype(np.float32), np.array([4, 1])
    with onnxft.TrainSession(artifact, threads=1, batch_size=2, dimensions={"sequence": length}) as session:
        found = session.gradients({"x": x, "labels": labels})
    torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(labels)).backward()
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def fail(source: Any) -> Any:
    raise RuntimeError("torch.export is out of order")


class Fixed(nn.Module):
    """Only takes the length of its example, which torch writes into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(x.shape[0], 36))


def test_a_dimension_that_does_not_stay_symbolic_is_an_error_or_gives_way() -> None:
    with pytest.raises(ModelError):
        export_module(Fixed(), X, dynamic_shapes=DYNAMIC)
    forward = export_module(Fixed(), X, dynamic_shapes=DYNAMIC, give_way=True)
    assert (forward.dimensions, dims(forward.infer.graph.inputs[0])) == ({}, (BATCH, 9, 4))
    assert forward.notes[0].startswith("the dimension 'sequence' is fixed to 9: ")


class BakedLength(nn.Module):
    """Divides by the length of the example: right at no other length."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.sum(1)) / (9.0 if torch.compiler.is_exporting() else float(x.shape[1]))


def test_a_length_baked_into_the_graph_is_found() -> None:
    with pytest.raises(ModelError, match="with batch 4, sequence 6"):
        export_module(BakedLength(), X, dynamic_shapes=DYNAMIC)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"y": {1: "sequence"}}, "names 'y', which is no input"),
        ({"x": {0: "rows"}}, "the first axis, and only it, is 'batch'"),
        ({"x": {1: "batch"}}, "the first axis, and only it, is 'batch'"),
        ({"x": {3: "depth"}}, "names axis 3 of 'x', which has the shape [3, 9, 4]"),
        ({"x": {1: "n", 2: "n"}}, "has the sizes 9 and 4"),
        ({"x": {1: "a-b"}}, "'a-b' cannot name a dimension"),
    ],
)
def test_wrong_dimensions_are_errors(shapes: Any, words: str) -> None:
    with pytest.raises(ModelError) as err:
        export_module(Tokens(), X, dynamic_shapes=shapes)
    assert words in str(err.value)


def test_too_short_an_example_is_an_error() -> None:
    with pytest.raises(ModelError, match="it must be at least 3"):
        export_module(Tokens(), X[:, :2], dynamic_shapes=DYNAMIC)


# ----- Tracing


class Grown(nn.Module):
    """RReLU has no form that torch.export's graph could be written in; tracing has one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(7, 4), nn.RReLU(), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.norm2 = nn.LayerNorm(4)
        self.unread = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.fc2(self.norm(self.act(self.fc1(x)))))


class WithoutEffect(nn.Module):
    """Reads a layer of whose result only the type is used."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lost = nn.Linear(7, 3), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.lost(x).new_zeros(x.shape[0], 3)


def test_a_layer_without_effect_is_unused() -> None:
    used = {t.name: t.used for t in export_module(WithoutEffect(), torch.randn(3, 7)).tensors}
    assert used == {"fc.weight": True, "fc.bias": True, "lost.weight": False, "lost.bias": False}


def test_tracing_takes_over_with_names_and_values() -> None:
    """Equal tensors (unit norms, zero biases) stay apart."""
    forward = export_module(Grown(), torch.randn(3, 7))
    assert forward.notes[0].startswith("the model was exported by tracing, since torch.export failed: ")
    assert {t.name for t in forward.tensors if not t.used} == {"unread.weight", "unread.bias"}
    assert {t.name for t in forward.tensors if t.used} <= set(forward.train.graph.initializers)


class ByValue(nn.Module):
    """What tracing would freeze: the branch that the example takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if float(x.abs().sum()) > 0 else x[:, :3]


class BySize(ByValue):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * (2 if x.shape[0] > 3 else 1)


def test_both_reasons_are_given() -> None:
    with pytest.raises(ModelError) as err:
        export_module(ByValue(), torch.ones(3, 7))
    first, by_export, by_tracing = str(err.value).splitlines()
    assert first == "torch cannot export the model."
    assert by_export.startswith("  torch.export: ")
    assert by_tracing.startswith("  tracing: the model turns values of tensors into Python numbers")


def test_a_decision_by_size_is_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxft.exporters.pytorch._torch_export", fail)
    with pytest.raises(ModelError, match=r"differs from torch by .* with batch 4"):
        export_module(BySize(), torch.randn(3, 7))


def test_renamed_and_transposed_initializers_get_their_names_back() -> None:
    module = nn.Linear(3, 2)
    a, b = (t.detach().numpy() for t in (module.weight, module.bias))
    x = ir.Value(name="x", shape=ir.Shape([BATCH, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    turned, bias = (ir.Value(name=n, const_value=ir.tensor(v)) for n, v in (("MatMul_1", a.T.copy()), ("b", b)))
    product = ir.Node("", "MatMul", [x, turned])
    total = ir.Node("", "Add", [product.outputs[0], bias])
    graph = ir.Graph([x], total.outputs, nodes=[product, total], initializers=[turned, bias], opset_imports={"": 18})
    from onnxft.exporters.pytorch import state_tensors

    legacy._restore_names(graph, module, state_tensors(module))
    assert set(graph.initializers) == {"weight", "bias"}
    np.testing.assert_array_equal(graph.initializers["weight"].const_value.numpy(), a)
    assert [node.op_type for node in graph] == ["Transpose", "MatMul", "Add"]
