"""Trained BatchNorm in the graphs of a step: which layers, which operators, which numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from onnxft import TrainSession
from onnxft.api import plan
from onnxft.errors import ConfigError, ModelError, SelectionError
from onnxft.manifest import BATCH, GraphFile
from onnxft.manifest_file import read_manifest
from onnxft.step.batch_norm import choose
from onnxft.step.select import select

ROWS = 3
STATISTICS = ("running_mean", "running_var")


def feeds_of(graph: GraphFile, module: nn.Module, x: np.ndarray, labels: np.ndarray, **more: Any) -> dict[str, Any]:
    """Inputs of a `gradients` graph, with the tensors of `module` and empty accumulators."""
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    feeds = {graph.named("input")[0].name: x, "labels": labels, "sample_weights": np.ones(len(x), np.float32), **more}
    feeds |= {p.name: state[p.parameter] for p in graph.named("parameter")}
    feeds |= {p.name: state[p.buffer] for p in graph.named("buffer")}
    return feeds | {p.name: np.zeros(state[p.parameter].shape, p.dtype) for p in graph.named("accumulator")}


def run(artifact: Path, graph: GraphFile, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [p.name for p in graph.outputs]
    return dict(zip(names, ReferenceEvaluator(onnx.load(artifact / graph.file)).run(names, feeds), strict=True))


def test_the_whole_graph_equals_torch_in_float64(exported: Callable[..., Path]) -> None:
    artifact = exported("normed", dtype="float64", dropout=False, train_batchnorm=("bn1", "bn3"))
    graph = read_manifest(artifact).graphs["gradients"]
    module = models.normed()[0].double().eval()
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((ROWS, 2, 9, 8)), rng.integers(0, 4, ROWS)
    found = run(artifact, graph, feeds_of(graph, module, x, labels))
    module.bn1.train()
    module.bn3.train()
    loss = nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(labels), reduction="sum")
    loss.backward()
    np.testing.assert_allclose(found["loss_sum"], loss.item(), rtol=1e-9)
    for name, parameter in module.named_parameters():
        expected = parameter.grad.numpy()
        assert np.abs(found[f"{name}.gradient"] - expected).max() <= 1e-9 * np.abs(expected).max(), name
    buffers = [f"{layer}.{which}" for layer in ("bn1", "bn3") for which in STATISTICS]
    assert [p.buffer for p in graph.named("buffer")] == buffers
    assert [p.buffer for p in graph.named("buffer", "outputs")] == buffers
    for name in buffers:
        np.testing.assert_allclose(found[f"{name}.new"], module.get_buffer(name).numpy(), rtol=1e-9, err_msg=name)


def test_no_training_mode_is_left_and_no_node_has_the_name_of_another(exported: Callable[..., Path]) -> None:
    artifact = exported("normed", train_batchnorm=("*",))
    for role, frozen in (("gradients", 0), ("train", 0), ("eval", 3)):
        nodes = onnx.load(artifact / f"{role}.onnx", load_external_data=False).graph.node
        assert sum(n.op_type == "BatchNormalization" for n in nodes) == frozen, role
        assert {n.domain for n in nodes} == {""}
        names = [n.name for n in nodes]
        assert len(set(names)) == len(names), role
    manifest = read_manifest(artifact)
    assert [len(manifest.graphs[role].named("buffer")) for role in ("gradients", "update", "train", "eval")] == [
        6, 0, 6, 6,
    ]  # fmt: skip
    assert manifest.buffers[0].over == (BATCH, 9, 8)
    assert manifest.buffers[4].over == (BATCH,)
    assert {(b.kind, b.name.rpartition("_")[2]) for b in manifest.buffers} == {("mean", "mean"), ("variance", "var")}


def one_layer(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path, **options: Any) -> tuple[nn.Module, Path]:
    """`layer` between two dense ones over `shape` (channels, ...), with its statistics trained."""
    torch.manual_seed(1)
    size = int(np.prod(shape))
    net = nn.Sequential(nn.Linear(5, size), nn.Unflatten(1, shape), layer, nn.Flatten(), nn.Linear(size, 3))
    made = plan(net, torch.randn(4, 5), train_batchnorm=["2"], **options)
    made.write(tmp_path / "a", batch_size=4)
    return net, tmp_path / "a"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(6, affine=False), (6,)),
        (nn.BatchNorm1d(3, momentum=0.7), (3, 4)),
        (nn.BatchNorm2d(3, momentum=1.0), (3, 2, 4)),
        (nn.BatchNorm2d(3, affine=False, eps=0.1), (3, 2, 4)),
        (nn.BatchNorm3d(2), (2, 3, 1, 4)),
    ],
    ids=str,
)
def test_every_kind_of_layer_moves_as_torch_moves_it(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    net, artifact = one_layer(layer, shape, tmp_path, optimizer="sgd", weight_decay=0.0)
    rng = np.random.default_rng(2)
    x, labels = (3 * rng.standard_normal((4, 5)) + 1).astype(np.float32), rng.integers(0, 3, 4)
    net.train()
    # Adam would make whole steps of the bias before the layer, whose gradient is rounding alone.
    stepper = torch.optim.SGD(net.parameters(), lr=0.05)
    with TrainSession(artifact, threads=1) as session:
        for _ in range(2):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(labels))
            loss.backward()
            stepper.step()
            assert session.step({"input": x, "labels": labels}, lr=0.05).loss == pytest.approx(loss.item(), rel=1e-5)
        assert list(session.buffers) == ["2.running_mean", "2.running_var"]
        for name, value in session.buffers.items():
            np.testing.assert_allclose(value, net.get_buffer(name).numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_variance_of_values_far_from_zero_is_exact(tmp_path: Path) -> None:
    """Mean 3000, deviation 1: in float32 the mean of squares less the squared mean would be off by one or more."""
    net, artifact = one_layer(nn.BatchNorm1d(6, affine=False), (6,), tmp_path)
    with torch.no_grad():
        net[0].bias += 3000
    x, labels = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32), np.arange(4) % 3
    with TrainSession(artifact, threads=1) as session:
        session.set_parameters({"0.bias": net[0].bias.detach().numpy()})
        before = session.buffers["2.running_var"]
        session.step({"input": x, "labels": labels}, lr=1e-3)
        found = (session.buffers["2.running_var"] - 0.9 * before) / 0.1
    with torch.no_grad():
        expected = net[0](torch.tensor(x)).double().var(0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


class Twice(nn.Module):
    """One BatchNorm in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4, momentum=0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(torch.tanh(self.norm(self.first(x))))))


def test_a_layer_that_is_used_twice_moves_twice_in_order(tmp_path: Path) -> None:
    torch.manual_seed(4)
    module = Twice()
    plan(module, torch.randn(4, 5), train_batchnorm=["norm"]).write(tmp_path / "a", batch_size=4)
    graph = read_manifest(tmp_path / "a").graphs["gradients"]
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((4, 5)).astype(np.float32), rng.integers(0, 3, 4)
    found = run(tmp_path / "a", graph, feeds_of(graph, module, x, labels))
    module.train()
    module(torch.tensor(x))
    for which in STATISTICS:
        expected = module.norm.get_buffer(which).numpy()
        np.testing.assert_allclose(found[f"norm.{which}.new"], expected, rtol=1e-5, atol=1e-6)


class Peeking(nn.Module):
    """Reads a running statistic beside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x) + self.norm.running_mean)


def test_a_statistic_with_another_reader_is_refused(tmp_path: Path) -> None:
    made = plan(Peeking(), torch.randn(4, 5), train_batchnorm=["norm"])
    with pytest.raises(ModelError, match=r"Add '.*' reads the running statistic 'norm\.running_mean'.*frozen"):
        made.write(tmp_path / "a", batch_size=4)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ((), []),
        (("bn1",), ["bn1"]),
        (("bn[13]",), ["bn1", "bn3"]),
        (("bn3.*", "bn1.weight"), ["bn1", "bn3"]),
        (("*",), ["bn1", "bn2", "bn3"]),
    ],
)
def test_patterns_match_layers_and_their_tensors(
    patterns: tuple[str, ...], chosen: list[str], planned: Callable[..., Any]
) -> None:
    assert [layer.name for layer in planned("normed", train_batchnorm=patterns).selection.batch_norms] == chosen


@pytest.mark.parametrize(
    ("layer", "pattern", "words"),
    [
        (nn.BatchNorm1d(6), "norm", "the pattern 'norm' matches no BatchNorm layer. Known: '2'"),
        (nn.BatchNorm1d(6), "0.*", "the pattern '0.*' matches no BatchNorm layer"),
        (nn.LayerNorm(6), "2", "'sequential' has no BatchNorm layer"),
        (nn.BatchNorm1d(6, momentum=None), "2", "'2' cannot be trained: its momentum is None (a cumulative average)"),
        (nn.BatchNorm1d(6, momentum=0.0), "*", "'2' cannot be trained: its momentum is 0, which must be above 0"),
        (nn.SyncBatchNorm(6), "2", "'2' cannot be trained: it is a SyncBatchNorm"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_says_why(layer: nn.Module, pattern: str, words: str) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), layer, nn.Linear(6, 3))
    with pytest.raises(SelectionError) as err:
        plan(net, torch.randn(4, 5), train_batchnorm=[pattern])
    assert words in str(err.value)


def test_near_names_are_shown(planned: Callable[..., Any]) -> None:
    with pytest.raises(SelectionError, match=r"'bn_1' matches no BatchNorm layer\. Did you mean 'bn1'"):
        choose(planned("normed").forward, ["bn_1"])


def test_the_other_generator_refuses(planned: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'ort-training' generator keeps .* frozen.*matches 'bn1'.*native"):
        planned("normed", train_batchnorm=("bn1",)).write(tmp_path / "a", batch_size=4, generator="ort-training")


def test_a_layer_without_running_statistics_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(ModelError, match=r"BatchNorm layer '1' keeps no running statistics.*depends on the other rows"):
        plan(net, torch.randn(4, 5))


def test_statistics_are_no_parameters_whatever_the_source_calls_them(planned: Callable[..., Any]) -> None:
    forward = planned("normed").forward
    forward = replace(forward, tensors=tuple(replace(t, kind="parameter") for t in forward.tensors if t.used))
    selection = select(forward, train_batchnorm=["bn3"])
    assert selection.trainable == planned("normed").selection.trainable
    assert selection.buffers == ("bn3.running_mean", "bn3.running_var")
    assert selection.skipped["bn2.running_var"] == "a running statistic of a BatchNorm layer, not a parameter"
