"""Recomputed activations: the same numbers bit for bit, computed after the gradient that they wait for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from onnxft import api
from onnxft.errors import ConfigError, OnnxftError, SelectionError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import BATCH, HalfPrecision
from onnxft.manifest_file import read_manifest
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sessions import ROUNDING_FUSIONS
from onnxft.step.build import differentiated
from onnxft.step.precision import lower
from onnxft.step.recompute import RECOMPUTED, _index, _wait
from onnxft.step.segments import Recomputation

ROWS = 6
Source = Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]


class Residual(nn.Module):
    """x + expand(erf(reduce(x))), with dropout and stochastic depth."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout, self.ratio = nn.Dropout(dropout), dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(self.dropout(torch.erf(self.reduce(x))))
        if self.training and self.ratio:
            y = y * torch.floor(0.7 + torch.rand(y.shape[0], 1)) / 0.7
        return x + y


class Convolution(nn.Module):
    """A convolution, a BatchNorm and an activation, beside which the picture is passed on."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.point(nn.functional.relu6(self.norm(self.conv(x))))


class Walk(nn.Module):
    """A recurrent layer over so many steps that it becomes a loop, between dense layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.rnn, self.after = nn.Linear(width, 5), nn.GRU(5, 4, batch_first=True), nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.after(torch.tanh(self.rnn(torch.tanh(self.before(x)))[0]))


class Stack(nn.Module):
    """A stem, blocks one behind the other, and a head on the mean over what is neither row nor feature."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module, over: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stem, self.blocks, self.head, self.over = stem, nn.ModuleList(blocks), head, over

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(self.over) if self.over else x)


class Tied(nn.Module):
    """Tokens whose table is the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList(Residual(8, 5, 0.0) for _ in range(3))
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).mean(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def dense(count: int = 4, dropout: float = 0.0) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(21)
    blocks: list[nn.Module] = [Residual(8, 13, dropout) for _ in range(count)]
    return Stack(nn.Linear(7, 8), blocks, nn.Linear(8, 5)), (torch.randn(ROWS, 7),)


def row_of_layers() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(22)
    sizes = (7, 11, 6, 9, 5)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1]), (torch.randn(ROWS, 7),)


def convolutions() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(23)
    stem = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.ReLU())
    blocks: list[nn.Module] = [Convolution(6, groups) for groups in (1, 3, 6)]
    return Stack(stem, blocks, nn.Linear(6, 4), over=(2, 3)), (torch.randn(ROWS, 2, 9, 8),)


def recurrent() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(24)
    blocks: list[nn.Module] = [Walk(3) for _ in range(3)]
    return Stack(nn.Linear(2, 3), blocks, nn.Linear(3, 4), over=(1,)), (torch.randn(ROWS, 50, 2),)


def tied() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(25)
    return Tied(), (torch.zeros(ROWS, 10, dtype=torch.int64),)


@dataclass(frozen=True)
class Case:
    """A model, what is trained of it, and the operators that are computed again."""

    source: Source
    again: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    per_segment: int = 1


CASES = {
    "row of layers": Case(row_of_layers, {"Sigmoid": 1}),
    "blocks": Case(dense, {"Erf": 3}),
    "two blocks at a time": Case(partial(dense, 5), {"Erf": 4}, per_segment=2),
    "dropout": Case(partial(dense, dropout=0.4), {"Erf": 3}),
    "last blocks behind a trunk": Case(dense, {"Erf": 2}, {"method": "last:3"}),
    "some blocks, no trunk": Case(
        partial(dense, dropout=0.4), {"Erf": 1}, {"trainable": ["blocks.2.*", "blocks.3.*", "head.*"]}
    ),
    "low-rank adapters": Case(models.adaptable, {"Tanh": 3}, {"method": "lora:2,head"}),
    "convolutions": Case(convolutions, {"Conv": 2, "Clip": 2, "Relu": 1}),
    "trained batch norm": Case(convolutions, {"Conv": 2, "Clip": 2, "Relu": 1}, {"train_batchnorm": ["*"]}),
    "transformer": Case(models.transformer, {"Softmax": 1, "LayerNormalization": 1}),
    "tied weights": Case(tied, {"Erf": 2}),
    "loops": Case(recurrent, {"Tanh": 4}),
}


def written(case: Case, folder: Path) -> Path:
    """The artifact with both kinds of graphs."""
    made = api.plan(*case.source(), recompute=case.per_segment, **case.options)
    made.write(folder / "artifact", batch_size=ROWS)
    return folder / "artifact"


def three_steps(artifact: Path, recompute: bool) -> dict[str, np.ndarray]:
    """Gradients, losses, parameters and running statistics, by name."""
    with TrainSession(artifact, threads=1, seed=3, recompute=recompute) as session:
        batch = random_batch(session.manifest, ROWS, 5)
        found = {f"gradient {k}": v for k, v in session.gradients(batch).items()}
        found["losses"] = np.array([session.step(batch, lr=1e-2).loss for _ in range(3)])
        return found | dict(session.parameters) | dict(session._engine.buffers())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    artifact = written(case, tmp_path)
    operators, none = (
        Counter(node.op_type for node in nodes_of(artifact / file) if node.name.endswith(RECOMPUTED))
        for file in ("train.recomputed.onnx", "train.onnx")
    )
    assert {op: operators[op] for op in case.again} == case.again
    assert not none
    expected, found = three_steps(artifact, False), three_steps(artifact, True)
    assert found.keys() == expected.keys()
    differing = [k for k, v in expected.items() if not np.array_equal(v, found[k])]
    assert differing == []
    assert all(np.isfinite(v).all() for v in expected.values())


@pytest.mark.parametrize("arriving", [0.0, -2.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_what_waits_is_the_value_itself(dtype: str, arriving: float) -> None:
    """Whatever the gradient holds that is waited for, and the value itself."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="waiting")
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.from_numpy(np.dtype(dtype)), [3, 5])
    dy = add_input(op, "dy", ir.DataType.FLOAT, [BATCH, 2])
    y = _wait(op, x, _index(op, dy))
    y.name = "y"
    graph.outputs.append(y)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    values = np.array([-0.0, np.nan, np.inf, 7.0, -1.5] * 3) if dtype == "float32" else np.arange(15)
    array = values.reshape(3, 5).astype(dtype)
    (found,) = session.run(None, {"x": array, "dy": np.full((4, 2), arriving, np.float32)})
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert session.get_outputs()[0].shape == [3, 5]


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


def executed(artifact: Path, folder: Path, recompute: bool) -> list[tuple[onnx.NodeProto, dict[str, int]]]:
    """What the runtime makes of the training graph, in the order in which it runs.

    Returns:
        (node, {output: its bytes, 0 where it has no rows}) for each.
    """
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    graph = read_manifest(artifact).graph("train", recompute=recompute)
    options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(ROUNDING_FUSIONS))
    options.optimized_model_filepath = str(folder / f"run.{graph.file}")
    options.enable_profiling, options.profile_file_prefix = True, str(folder / Path(graph.file).stem)
    options.add_free_dimension_override_by_name(BATCH, ROWS)
    session = ort.InferenceSession(artifact / graph.file, options, providers=["CPUExecutionProvider"])
    feeds = {p.name: np.ones([ROWS if d == BATCH else int(d) for d in p.shape], p.dtype) for p in graph.inputs}
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    nodes = {node.name: node for node in nodes_of(folder / f"run.{graph.file}")}
    found = []
    for event in sorted(kernels, key=lambda e: e["ts"]):
        node = nodes[event["name"].removesuffix("_kernel_time")]
        shapes = [next(iter(s.values())) for s in event["args"]["output_type_shape"]]
        sizes = [4 * math.prod(shape) if shape[:1] == [ROWS] else 0 for shape in shapes]
        found.append((node, dict(zip([o for o in node.output if o], sizes, strict=True))))
    return found


def peak_of_activations(order: list[tuple[onnx.NodeProto, dict[str, int]]]) -> int:
    """The most bytes of rows that are alive at once, where nothing is computed in place."""
    last = {name: i for i, (node, _) in enumerate(order) for name in (*node.input, *node.output)}
    live: dict[str, int] = {}
    peak = 0
    for i, (_, sizes) in enumerate(order):
        live.update(sizes)
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last[name] > i}
    return peak


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Executed nodes of eight blocks, without and with recomputation."""
    folder = tmp_path_factory.mktemp("orders")
    artifact = written(Case(partial(dense, 8), {}), folder)
    return executed(artifact, folder, False), executed(artifact, folder, True)


def test_the_runtime_keeps_the_copies_apart(orders: tuple[list[Any], list[Any]]) -> None:
    kept, recomputed = ([node.op_type for node, _ in order].count("Erf") for order in orders)
    assert (kept, recomputed) == (8, 8 + 7)


def test_each_block_is_computed_again_when_its_gradient_has_arrived(orders: tuple[list[Any], list[Any]]) -> None:
    names = [node.name for node, _ in orders[1]]
    erfs = [i for i, (node, _) in enumerate(orders[1]) if node.op_type == "Erf"]
    again = [i for i in erfs if names[i].endswith(RECOMPUTED)]
    firsts = [i for i in erfs if i not in again]
    assert max(firsts) < min(i for i, (node, _) in enumerate(orders[1]) if node.op_type == "And") < min(again)
    # In the file a copy has the name of its original, whose order is that of the blocks: here it is turned round.
    originals = [names.index(names[i].removesuffix(RECOMPUTED)) for i in again]
    assert originals == sorted(originals, reverse=True)


def test_fewer_bytes_are_alive_at_once(orders: tuple[list[Any], list[Any]]) -> None:
    kept, recomputed = map(peak_of_activations, orders)
    print(f"{kept:,} bytes, with recomputation {recomputed:,}")
    assert recomputed < 0.7 * kept


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_graphs_in_half_precision_give_the_same_numbers_too(precision: HalfPrecision) -> None:
    made = api.plan(*dense(), recompute=True)
    assert made.blocks is not None
    results = []
    for again in (None, Recomputation(made.blocks)):
        step = differentiated(made.forward, made.selection, made.loss, made.optimizer, again)
        lowered = lower(step["gradients"], precision)
        model = ir.to_proto(lowered.model)
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
        rng = np.random.default_rng(7)
        feeds = {
            p.name: (np.zeros if p.dtype == "int64" else rng.random)([ROWS if d == BATCH else int(d) for d in p.shape])
            for p in lowered.inputs
        }
        typed = {p.name: feeds[p.name].astype(p.dtype) for p in lowered.inputs}
        results.append(ReferenceEvaluator(model).run(None, typed))
    for kept, recomputed in zip(*results, strict=True):
        np.testing.assert_array_equal(recomputed, kept)
        assert np.isfinite(kept).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
def test_a_frozen_weight_is_widened_anew_where_its_layer_is_computed_again(precision: Any, tmp_path: Path) -> None:
    """So that none is kept in float32 from the forward pass on."""
    artifact = api.export(
        *models.deep(), tmp_path / "artifact", trainable=["stem.*", "head.*"], recompute=True,
        frozen_precision=precision,
    )  # fmt: skip
    nodes = {node.name: node for node in nodes_of(artifact / "train.recomputed.onnx")}
    readers = Counter(x for node in nodes.values() for x in node.input)
    again = {name: node for name, node in nodes.items() if node.op_type == "Conv" and name.endswith(RECOMPUTED)}
    assert len(again) == 5
    for name, node in again.items():
        weights = [node.input[1], nodes[name.removesuffix(RECOMPUTED)].input[1]]
        assert weights[1].startswith("blocks.")
        assert [readers[w] for w in weights] == [1, 1]


REFUSED: dict[str, tuple[Source, dict[str, Any], type[OnnxftError], str]] = {
    "a negative number": (dense, {"recompute": -1}, ConfigError, "recompute is -1"),
    "ort-training": (dense, {"recompute": True, "generator": "ort-training"}, ConfigError, "another package"),
    "no blocks": (models.lstm, {"recompute": True}, SelectionError, "Found are none"),
    "more blocks than there are": (row_of_layers, {"recompute": 3}, SelectionError, "3 make a segment"),
    "the head alone": (dense, {"recompute": True, "method": "head"}, SelectionError, "gradients pass no block"),
    "an unknown block": (dense, {"recompute": True, "blocks": ["layer.*"]}, SelectionError, "matches no module"),
    "blocks for nothing": (dense, {"blocks": ["blocks.*"]}, ConfigError, "for recompute"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recomputed_is_refused(name: str, tmp_path: Path) -> None:
    source, options, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        api.export(*source(), tmp_path / "artifact", **options)
    assert list(tmp_path.iterdir()) == []
