from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnxft.errors import ConfigError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import Optimizer
from onnxft.step.build import _clip_graph, _update_graph
from onnxft.step.optimizers import describe_optimizer
from onnxft.step.select import Selection, select
from onnxft.step.step_graph import StepGraph
from onnxft.step.updates import _bias_corrections

SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.scale": ()}
WEIGHT_SUM = 7.0
INF = float("inf")
Arrays = dict[str, np.ndarray]


def named(dtype: str) -> Forward:
    """Parameters of the SHAPES; what is tested needs nothing of a model but their names."""
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=IR_VERSION)
    tensors = tuple(Tensor(name, shape, dtype, "parameter") for name, shape in SHAPES.items())
    return Forward("m", empty, empty, tensors, (), ())


class Updates:
    """Runs the graphs `clip` and `update` step after step on one of the two evaluators."""

    def __init__(self, forward: Forward, selection: Selection, optimizer: Optimizer, values: Arrays) -> None:
        self.clip, self.update = _clip_graph(forward, selection), _update_graph(forward, selection, optimizer)
        self.dtype, self.count, self.values = np.dtype(forward.tensors[0].dtype), 0, dict(values)
        self.state = {p.name: np.zeros(p.shape, self.dtype) for p in self.update.inputs if p.role == "state"}

    def step(self, sums: Arrays, lr: float, decay: float, max_norm: float, max_value: float) -> None:
        scalars = {"lr.default": lr, "weight_decay.default": decay, "max_norm": max_norm, "max_value": max_value}
        self.advance(sums, scalars, clips=max_norm != INF or max_value != INF)

    def advance(self, sums: Arrays, scalars: dict[str, float], *, clips: bool = False) -> None:
        self.count += 1
        scalars = {"weight_sum": WEIGHT_SUM, "step": self.count, **scalars}
        feeds = {name: np.array(value, self.dtype) for name, value in scalars.items()} | self.values | self.state
        if clips:
            clipped = self.run(self.clip, feeds | {f"{name}.accumulator": value for name, value in sums.items()})
            sums = {name: clipped[f"{name}.gradient"] for name in sums}
        found = self.run(self.update, feeds | {f"{name}.accumulator": value for name, value in sums.items()})
        self.values = {name: found[f"{name}.new"] for name in self.values}
        self.state = {name: found[f"{name}.new"] for name in self.state}

    def run(self, graph: StepGraph, feeds: Arrays) -> Arrays:
        proto = ir.to_proto(graph.model)
        feeds = {p.name: feeds[p.name] for p in graph.inputs}
        if self.dtype == np.float32:
            session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
            values = session.run(None, feeds)
        else:
            values = ReferenceEvaluator(proto).run(None, feeds)
        return {p.name: np.asarray(value) for p, value in zip(graph.outputs, values, strict=True)}


def normal(rng: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "options", "decay", "max_norm", "max_value"),
    [
        ("adamw", {}, None, INF, INF),
        ("adamw", {}, 0.0, INF, INF),
        ("adamw", {"beta1": 0.7, "beta2": 0.99, "eps": 1e-3}, 0.2, INF, INF),
        ("sgd", {}, None, INF, INF),
        ("sgd", {}, 0.1, INF, INF),
        ("sgd", {"momentum": 0.9}, None, INF, INF),
        ("sgd", {"momentum": 0.9}, 0.1, INF, INF),
        ("sgd", {}, None, 0.05, INF),
        ("sgd", {"momentum": 0.9}, 0.1, INF, 0.03),
        ("sgd", {"momentum": 0.9, "nesterov": 1}, 0.1, INF, INF),
        ("adam", {}, None, INF, INF),
        ("adam", {"beta1": 0.7, "beta2": 0.99, "eps": 1e-3}, 0.2, 0.3, INF),
        ("lion", {}, None, INF, INF),
        ("lion", {"beta1": 0.7, "beta2": 0.8}, 0.3, INF, 0.5),
        ("adamw", {}, None, 0.3, 0.1),
        ("adamw", {}, None, 1e6, 1e6),
    ],
)
def test_25_steps_equal_torch(
    kind: str, options: dict[str, float], decay: float | None, max_norm: float, max_value: float, dtype: str
) -> None:
    rng = np.random.default_rng(11)
    values = normal(rng, dtype)
    optimizer = describe_optimizer(kind, options, decay)
    forward = named(dtype)
    updates = Updates(forward, select(forward), optimizer, values)
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    reference = _torch_optimizer(kind, list(parameters.values()), optimizer)
    for step in range(25):
        lr = 0.1 / (1 + step)  # another one at each step
        sums = {name: np.asarray(WEIGHT_SUM * value, dtype) for name, value in normal(rng, dtype).items()}
        for name, p in parameters.items():
            p.grad = torch.tensor(sums[name]) / WEIGHT_SUM
        torch.nn.utils.clip_grad_value_(parameters.values(), max_value)
        torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        updates.step(sums, lr, optimizer.weight_decay, max_norm, max_value)
    for name, p in parameters.items():
        expected = p.detach().numpy()
        assert updates.values[name].dtype == np.dtype(dtype)
        error = np.abs(updates.values[name] - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


def _torch_optimizer(kind: str, parameters: list[torch.Tensor], optimizer: Optimizer) -> torch.optim.Optimizer:
    options, decay = optimizer.options, optimizer.weight_decay
    if kind == "sgd":
        nesterov = bool(options["nesterov"])
        return torch.optim.SGD(parameters, momentum=options["momentum"], weight_decay=decay, nesterov=nesterov)
    betas = (options["beta1"], options["beta2"])
    if kind == "lion":
        return Lion(parameters, betas, decay)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return made(parameters, betas=betas, eps=options["eps"], weight_decay=decay)


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023, which torch has not."""

    def __init__(self, parameters: list[torch.Tensor], betas: tuple[float, float], decay: float) -> None:
        super().__init__(parameters, {"lr": 1e-4, "betas": betas, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            c = beta1 * m + (1 - beta1) * p.grad
            p -= group["lr"] * (c.sign() + group["decay"] * p)
            m.copy_(beta2 * m + (1 - beta2) * p.grad)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 10, 600, 1000, 100_000, 2**24])
def test_bias_corrections_keep_the_precision_of_float32(step: int) -> None:
    """1 - βᵗ in its plain form is off by up to 1e-3 here at step 1."""
    betas = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    graph.outputs.extend(_bias_corrections(op, add_input(op, "step", ir.DataType.FLOAT, []), betas))
    # Kernels that make it of exponentials are exact to 1e-7, not to so many digits.
    assert "Tanh" not in {node.op_type for node in graph}
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"step": np.array(step, np.float32)})
    assert [value.shape for value in found] == [()] * len(betas)
    assert found[0] == 1.0
    for value, beta in zip(found[1:], betas[1:], strict=True):
        assert value == pytest.approx(-np.expm1(step * np.log(beta)), rel=3e-7), beta


def test_an_optimizer_without_state_has_no_step_input() -> None:
    forward = named("float32")
    assert {p.role for p in _update_graph(forward, select(forward), describe_optimizer("sgd")).inputs} == {
        "parameter", "accumulator", "weight_sum", "lr", "weight_decay",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "decay", "words"),
    [
        ("adamv", {}, None, "unknown optimizer 'adamv'. Did you mean 'adam' or 'adamw'?"),
        ("rmsprop", {}, None, "Known: 'adam', 'adamw', 'lion', 'sgd'."),
        ("sgd", {"momentum": 0.9, "nesterov": 0.5}, None, "'nesterov' of optimizer 'sgd' is 0.5; it must be 0 or 1"),
        ("sgd", {"nesterov": 1}, None, "'nesterov' of optimizer 'sgd' needs a 'momentum' above 0"),
        ("lion", {"eps": 1e-8}, None, "'lion' has no option 'eps'"),
        ("sgd", {"momentun": 0.9}, None, "'sgd' has no option 'momentun'. Did you mean 'momentum'?"),
        ("adamw", {"momentum": 0.9}, None, "'adamw' has no option 'momentum'"),
        ("adamw", {"beta1": 1.0}, None, "option 'beta1' of optimizer 'adamw' is 1.0"),
        ("adamw", {"beta2": -0.1}, None, "'beta2' of optimizer 'adamw' is -0.1"),
        ("sgd", {"momentum": float("nan")}, None, "'momentum' of optimizer 'sgd' is nan"),
        ("sgd", {}, -0.1, "weight_decay is -0.1"),
        ("sgd", {}, INF, "weight_decay is inf"),
        ("sgd", {}, float("nan"), "weight_decay is nan"),
    ],
)
def test_options_are_checked(kind: str, options: dict[str, float], decay: float | None, words: str) -> None:
    with pytest.raises(ConfigError) as err:
        describe_optimizer(kind, options, decay)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("adamw", 0.0, "'max_norm' of optimizer 'adamw' is 0.0; it must be finite and above 0"),
        ("sgd", INF, "'max_norm' of optimizer 'sgd' is inf"),
        ("sgd", float("nan"), "'max_norm' of optimizer 'sgd' is nan"),
        ("lion", 1.0, "optimizer 'lion' has no option 'max_norm'"),
    ],
)
def test_a_norm_to_bake_in_is_checked(kind: str, value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        describe_optimizer(kind, {"max_norm": value})
    assert "max_norm" not in describe_optimizer(kind).options


def test_a_norm_to_bake_in_is_an_option_like_others() -> None:
    assert describe_optimizer("sgd", {"max_norm": 3}).options == {"momentum": 0.0, "nesterov": 0.0, "max_norm": 3.0}


@pytest.mark.parametrize(
    ("kind", "default", "decay"),
    [
        ("adamw", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.01),
        ("sgd", {"momentum": 0.0, "nesterov": 0.0}, 0.0),
        ("adam", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, 0.0),
    ],
)
def test_defaults_are_torchs(kind: str, default: dict[str, float], decay: float) -> None:
    assert describe_optimizer(kind) == Optimizer(kind, default, decay)
