"""Names, values and ties survive the export: exporters have merged and renamed what happened to be equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from onnxft.api import Plan
from onnxft.errors import ModelError
from onnxft.exporters.check import check_tensors
from onnxft.exporters.pytorch import export_module, state_tensors
from onnxft.graph.normalize import OPSET, normalize
from onnxft.manifest import BATCH
from onnxft.manifest_file import read_manifest
from onnxft.runtime.session import TrainSession

ROWS = 5


@pytest.mark.parametrize("model", ["twins", "convnet"])
def test_an_optimizing_exporter_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It merges the zero biases and unit norms of `twins`, and folds the normalisation of `convnet`."""
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: export(*args, **{**options, "optimize": True}))
    with pytest.raises(ModelError, match=r"the export (lost|changed) '"):
        export_module(*getattr(models, model)())


@pytest.mark.parametrize("model", ["twins", "convnet", "mlp", "dropped"])
def test_every_tensor_keeps_its_name_and_value(model: str, planned: Callable[..., Plan]) -> None:
    module, _ = getattr(models, model)()
    state = {n: t for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    if model == "twins":
        del state["back.weight"]
    forward = planned(model).forward
    for graph in (forward.train.graph, forward.infer.graph):
        assert set(state) <= set(graph.initializers)
        for name, tensor in state.items():
            np.testing.assert_array_equal(graph.initializers[name].const_value.numpy(), tensor.numpy(), err_msg=name)
            assert graph.initializers[name].uses(), name


def test_only_shared_storage_is_a_tie(planned: Callable[..., Plan]) -> None:
    ties = {t.name: t.tied_to for t in planned("twins").forward.tensors if t.tied_to}
    assert ties == {"embed.weight": ("back.weight",)}


def test_equal_values_grow_apart_in_training_and_ties_do_not(exported: Callable[..., Path]) -> None:
    artifact = exported("twins", "sgd", batch_size=ROWS)
    initial = load_file(artifact / "parameters.safetensors")
    for one, other in (("fc.bias", "norm1.bias"), ("norm1.weight", "norm2.weight")):
        np.testing.assert_array_equal(initial[one], initial[other])

    rng = np.random.default_rng(13)
    x, labels = rng.standard_normal((ROWS, 7)).astype(np.float32), rng.integers(0, 7, ROWS)
    module, _ = models.twins()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with TrainSession(artifact, threads=1) as session:
        for _ in range(5):
            session.step({"x": x, "labels": labels}, lr=0.1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(labels)).backward()
            optimizer.step()
        found = session.parameters
    assert read_manifest(artifact).parameters[0].tied_to == ("back.weight",)
    assert found.keys() == dict(module.named_parameters()).keys()
    for one, other in (("fc.bias", "norm1.bias"), ("norm1.weight", "norm2.weight")):
        assert np.abs(found[one] - found[other]).min() > 1e-5
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def sharing(how: str) -> ir.Model:
    """x * weight + running_var, in which `weight` stands for `running_var` too: both are ones in a fresh network."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([BATCH, 3]))
    ones = np.ones(3, np.float32)
    weight, variance = (
        ir.Value(name=n, const_value=ir.tensor(ones), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3]))
        for n in ("weight", "running_var")
    )
    product = ir.node("Mul", [x, weight])
    copy = ir.node("Identity", [weight])
    total = ir.node("Add", [product.outputs[0], variance if how == "apart" else copy.outputs[0]])
    total.outputs[0].name = "output"
    kept = [weight] if how == "lost" else [weight, variance]
    nodes = [product, total] if how == "apart" else [product, copy, total]
    graph = ir.Graph([x], total.outputs, nodes=nodes, initializers=kept, opset_imports={"": OPSET}, name="g")
    return ir.Model(graph, ir_version=10)


class Fresh(nn.Module):
    """The module behind `sharing`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_var", torch.ones(3))


@pytest.mark.parametrize("how", ["lost", "unread"])
def test_one_initializer_for_two_entries_is_refused(how: str) -> None:
    module = Fresh()
    with pytest.raises(ModelError, match="the export lost 'running_var'"):
        check_tensors(module, sharing(how).graph, state_tensors(module), {"weight", "running_var"})


def test_equal_initializers_that_are_apart_pass_and_stay_apart() -> None:
    module, model = Fresh(), sharing("apart")
    tensors = state_tensors(module)
    check_tensors(module, model.graph, tensors, {"weight", "running_var"})
    normalize(model, tensors)
    assert set(model.graph.initializers) == {"weight", "running_var"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a + 1, "float32 became [3] float32 with other values"),
        (lambda a: a.astype(np.float64), "float32 became [3] float64"),
        (lambda a: a.reshape(1, 3), "shape [3] float32 became [1, 3]"),
    ],
)
def test_a_changed_value_is_refused(change: Callable[[Any], Any], words: str) -> None:
    module, model = Fresh(), sharing("apart")
    model.graph.initializers["running_var"].const_value = ir.tensor(change(np.ones(3, np.float32)))
    with pytest.raises(ModelError) as err:
        check_tensors(module, model.graph, state_tensors(module), {"weight", "running_var"})
    assert "the export changed 'running_var'" in str(err.value)
    assert words in str(err.value)
