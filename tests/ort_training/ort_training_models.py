"""Small models, as torch modules and as the Forward that an exporter would make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import BATCH, Loss, Optimizer
from onnxft.step.select import Selection

BATCH_SIZE, CLASSES = 6, 3
STEPS = 20


@dataclass(frozen=True)
class Case:
    name: str
    module: Callable[[], nn.Module]
    graph: Callable[[Op, ir.Value, dict[str, ir.Value]], ir.Value]
    input_shape: tuple[int, ...]
    trainable: tuple[str, ...]
    loss: Loss
    optimizer: Optimizer
    lr: float


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def mlp_graph(op: Op, x: ir.Value, p: dict[str, ir.Value]) -> ir.Value:
    h = op.Relu(op.Gemm(x, p["0.weight"], p["0.bias"], transB=1))
    return op.Gemm(h, p["2.weight"], p["2.bias"], transB=1)


def convnet() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    with torch.no_grad():
        for tensor in (net[1].weight, net[1].running_var):
            tensor.copy_(torch.rand(4) + 0.5)
        for tensor in (net[1].bias, net[1].running_mean):
            tensor.copy_(torch.randn(4))
    net[1].eval()
    return net


def convnet_graph(op: Op, x: ir.Value, p: dict[str, ir.Value]) -> ir.Value:
    h = op.Conv(x, p["0.weight"], p["0.bias"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    h = op.BatchNormalization(
        h, *(p[f"1.{n}"] for n in ("weight", "bias", "running_mean", "running_var")), epsilon=1e-5
    )
    h = op.Flatten(op.MaxPool(op.Relu(h), kernel_shape=[2, 2], strides=[2, 2]))
    return op.Gemm(h, p["5.weight"], p["5.bias"], transB=1)


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, CLASSES))


def layer_norm_graph(op: Op, x: ir.Value, p: dict[str, ir.Value]) -> ir.Value:
    h = op.LayerNormalization(op.Gemm(x, p["0.weight"], p["0.bias"], transB=1), p["1.weight"], p["1.bias"], axis=-1)
    return op.Gemm(op.Relu(h), p["3.weight"], p["3.bias"], transB=1)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, CLASSES))


def dropout_graph(op: Op, x: ir.Value, p: dict[str, ir.Value]) -> ir.Value:
    ratio, training = (op.initializer(ir.tensor(v), name=n) for n, v in (("ratio", 0.5), ("training", True)))
    h = op.Dropout(op.Relu(op.Gemm(x, p["0.weight"], p["0.bias"], transB=1)), ratio, training)
    return op.Gemm(h, p["3.weight"], p["3.bias"], transB=1)


CROSS_ENTROPY = Loss("cross_entropy", "logits", CLASSES)
MLP = ("0.weight", "0.bias", "2.weight", "2.bias")
NORM = ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias")
HEAD = ("0.weight", "5.weight", "5.bias")
ADAMW = Optimizer("adamw", weight_decay=0.01)
CASES = {
    case.name: case
    for case in (
        Case("mlp_sgd", mlp, mlp_graph, (5,), MLP, CROSS_ENTROPY, Optimizer("sgd"), 0.3),
        Case("mlp_adamw", mlp, mlp_graph, (5,), MLP, CROSS_ENTROPY, ADAMW, 0.02),
        Case("mlp_mse", mlp, mlp_graph, (5,), MLP[2:], Loss("mse", "logits"), Optimizer("sgd"), 0.1),
        Case("mlp_decay", mlp, mlp_graph, (5,), MLP, CROSS_ENTROPY, Optimizer("adamw", {"eps": 1e-3}, 0.5), 0.05),
        Case("convnet_sgd", convnet, convnet_graph, (2, 4, 6), HEAD, CROSS_ENTROPY, Optimizer("sgd"), 0.1),
        Case("convnet_adamw", convnet, convnet_graph, (2, 4, 6), HEAD, CROSS_ENTROPY, ADAMW, 0.02),
        Case("layer_norm", layer_norm, layer_norm_graph, (5,), NORM, CROSS_ENTROPY, ADAMW, 0.02),
        Case("dropout", dropout, dropout_graph, (5,), ("0.weight", "3.weight"), CROSS_ENTROPY, ADAMW, 0.02),
        Case(
            "convnet_affine",
            convnet,
            convnet_graph,
            (2, 4, 6),
            (*HEAD, "1.weight", "1.bias"),
            CROSS_ENTROPY,
            ADAMW,
            0.02,
        ),
    )
}


def make_module(case: Case) -> nn.Module:
    """The torch module with weights that depend on nothing but the case's architecture."""
    torch.manual_seed(0)
    return case.module()


def make_forward(case: Case) -> Forward:
    """The case's model in the internal form."""
    module = make_module(case)
    parameters = {n for n, _ in module.named_parameters()}
    state = {n: v.detach().numpy().copy() for n, v in module.state_dict().items() if v.is_floating_point()}
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name=case.name)
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, (BATCH, *case.input_shape))
    values = {}
    for name, array in state.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
        graph.register_initializer(value)
        values[name] = value
    y = case.graph(op, x, values)
    y.name = "logits"
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    tensors = tuple(
        Tensor(n, v.shape, "float32", "parameter" if n in parameters else "buffer") for n, v in state.items()
    )
    infer = model.clone()
    if (training := infer.graph.initializers.get("training")) is not None:  # of Dropout
        training.const_value = ir.tensor(False, name="training")
    return Forward(case.name, model, infer, tensors, ("x",), ("logits",))


def choose(*names: str) -> Selection:
    return Selection(names, dict.fromkeys(names, "default"), {})


def make_batches(case: Case) -> list[dict[str, np.ndarray]]:
    """One batch for each of the steps."""
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(STEPS):
        x = rng.standard_normal((BATCH_SIZE, *case.input_shape), np.float32)
        if case.loss.kind == "mse":
            labels: np.ndarray = rng.standard_normal((BATCH_SIZE, CLASSES), np.float32)
        else:
            labels = rng.integers(0, CLASSES, BATCH_SIZE)
        batches.append({"x": x, "labels": labels})
    return batches


def torch_reference(case: Case, max_norm: float | None = None) -> dict[str, np.ndarray]:
    """Losses of the steps, gradients of the first and parameters after the last, from torch."""
    module = make_module(case)
    trained = {n: p for n, p in module.named_parameters() if n in case.trainable}
    options = dict(case.optimizer.options)
    if case.optimizer.kind == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            trained.values(), lr=case.lr, weight_decay=case.optimizer.weight_decay, **options
        )
    else:
        optimizer = torch.optim.SGD(trained.values(), lr=case.lr)
    loss_of = nn.MSELoss() if case.loss.kind == "mse" else nn.CrossEntropyLoss()
    found: dict[str, np.ndarray] = {}
    losses = []
    for batch in make_batches(case):
        optimizer.zero_grad()
        loss = loss_of(module(torch.from_numpy(batch["x"])), torch.from_numpy(batch["labels"]))
        loss.backward()
        if not losses:
            found |= {f"gradient/{n}": p.grad.numpy().copy() for n, p in trained.items()}
        if max_norm is not None:
            nn.utils.clip_grad_norm_(trained.values(), max_norm)
        optimizer.step()
        losses.append(loss.item())
    found |= {f"final/{n}": p.detach().numpy().copy() for n, p in trained.items()}
    module.load_state_dict(make_module(case).state_dict())
    first = make_batches(case)[0]
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(first["x"]))
    found |= {"eval": loss_of(outputs, torch.from_numpy(first["labels"])).numpy()}
    return {"losses": np.array(losses), **found}
