"""LoRA in the graphs: which layers get it, its formula, its gradients against torch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import adaptable
from onnx_models import random, save, save_mlp
from torch import nn

import onnxft
from onnxft.api import Plan, plan
from onnxft.errors import SelectionError
from onnxft.step.methods.apply import apply_method
from onnxft.step.methods.method import parse_method

LAYERS = ("conv.weight", "point.weight", *(f"layers.{i}.{j}.weight" for i in range(3) for j in (0, 2)))


def adapted(forward: Any, method: str = "lora:2", train: Any = None, freeze: Any = (), **options: Any) -> list[str]:
    applied = apply_method(forward, parse_method(method, **options), train, freeze)
    return list(dict.fromkeys(merge.target for merge in applied.forward.added.values()))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, LAYERS),
        ({"lora_targets": ["layers.1.*", "head.weight"]}, ("layers.1.0.weight", "layers.1.2.weight", "head.weight")),
        ({"freeze": ["layers.*", "conv.*"]}, ("point.weight",)),
        ({"train": ["layers.[12].*"]}, LAYERS[:4]),
        ({"method": "lora:2,last:2"}, LAYERS[:4]),
        ({"method": "lora:5", "lora_targets": ["conv.weight"]}, ("conv.weight",)),
    ],
)
def test_layers_get_adapters(planned: Callable[..., Plan], options: dict[str, Any], weights: tuple[str, ...]) -> None:
    assert tuple(adapted(planned("adaptable").forward, **options)) == weights


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"method": "lora:9"},
            "the LoRA rank 9 is larger than a dimension of 'conv.weight', which makes 6 values of 27",
        ),
        (
            {"method": "lora:9", "freeze": ["conv.*"]},
            "'point.weight', which makes 8 values of 6. Ask for a rank of at most 6",
        ),
        ({"lora_targets": ["tail.*"]}, "the LoRA target 'tail.*' matches no parameter"),
        ({"lora_targets": ["norm.*"]}, "'norm.weight' cannot, no linear layer or convolution multiplies by it"),
        ({"lora_targets": ["depth.weight"]}, "'depth.weight' cannot, its convolution has 8 groups"),
        (
            {"lora_targets": ["head.weight"], "train": ["head.*"]},
            "'head.weight' matches the LoRA target 'head.weight' and is",
        ),
        ({"method": "lora,full"}, "9 linear layers or convolutions, of which 9 are trained in full"),
        ({"freeze": ["*.weight"]}, "of which 0 are trained in full and the others are frozen or the head"),
    ],
)
def test_what_cannot_be_adapted_is_an_error(planned: Callable[..., Plan], options: dict[str, Any], words: str) -> None:
    with pytest.raises(SelectionError) as err:
        adapted(planned("adaptable").forward, **options)
    assert words in str(err.value)


def test_one_factor_alone_cannot_be_frozen() -> None:
    with pytest.raises(SelectionError, match=r"'conv\.weight\.lora_A' is a factor .*--freeze 'conv\.weight'"):
        plan(*adaptable(), method="lora:2", frozen=["conv*lora_A"])


def test_a_tied_weight_that_is_looked_up_too_gets_none() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.between = nn.Linear(6, 6)
            self.out = nn.Linear(6, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.between(self.embed(tokens)))).mean(1)

    net, example = Tied(), torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(SelectionError, match=r"can be adapted: '.*\.weight' cannot, Gather .* reads it too"):
        plan(net, example, method="lora:2", lora_targets=["out.weight"])
    assert set(plan(net, example, method="lora:2").forward.added) == {f"between.weight.lora_{f}" for f in "AB"}


# ----- numbers -----


class Way(nn.Module):
    """A layer with its adapter, as the paper writes it."""

    def __init__(self, layer: nn.Module, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            inner = nn.functional.conv2d(x, self.a, None, layer.stride, layer.padding, layer.dilation)
            return layer(x) + self.scale * nn.functional.conv2d(inner, self.b)
        return layer(x) + self.scale * (x @ self.a.T @ self.b.T)


def values(session: onnxft.TrainSession) -> dict[str, np.ndarray]:
    """Other values than at the start, where B is 0."""
    return {name: random(*value.shape, seed=5) for name, value in session.parameters.items()}


def test_outputs_and_gradients_are_those_of_torch(tmp_path: Path) -> None:
    net, (image,) = adaptable()
    net.eval()
    artifact = onnxft.export(net, (image,), tmp_path / "a", method="lora:3,head", lora_alpha=4.5, input_names=["image"])
    labels = np.array([4, 0, 1, 3])
    with onnxft.TrainSession(artifact, threads=1) as session:
        assert (
            np.abs(next(iter(session.predict({"image": image.numpy()}).values())) - net(image).detach().numpy()).max()
            < 1e-5
        )
        session.set_parameters(values(session))
        outputs = next(iter(session.predict({"image": image.numpy()}).values()))
        gradients = session.gradients({"image": image.numpy(), "labels": labels})
    given = {name: torch.from_numpy(value) for name, value in values(session).items()}
    net.requires_grad_(False)
    for weight in LAYERS:
        name = weight.removesuffix(".weight")
        net.set_submodule(name, Way(net.get_submodule(name), given[f"{weight}.lora_A"], given[f"{weight}.lora_B"], 1.5))
    net.head.weight, net.head.bias = nn.Parameter(given["head.weight"]), nn.Parameter(given["head.bias"])
    expected = net(image)
    assert np.abs(outputs - expected.detach().numpy()).max() < 1e-5
    nn.functional.cross_entropy(expected, torch.from_numpy(labels)).backward()
    assert len(gradients) == 2 * len(LAYERS) + 2
    for weight in LAYERS:
        way = net.get_submodule(weight.removesuffix(".weight"))
        for factor, parameter in (("lora_A", way.a), ("lora_B", way.b)):
            own, reference = gradients[f"{weight}.{factor}"], parameter.grad.numpy()
            assert np.abs(reference).max() > 1e-5
            assert np.abs(own - reference).max() < 1e-4 * np.abs(reference).max(), f"{weight}.{factor}"


def test_the_start_is_that_of_peft_and_repeats(planned: Callable[..., Plan]) -> None:
    forward = planned("adaptable").forward
    one, two = (apply_method(forward, parse_method(m), None, []).forward for m in ("lora:2", "lora:2,head"))
    for name, merge in one.added.items():
        start, again = (f.train.graph.initializers[name].const_value.numpy() for f in (one, two))
        assert np.array_equal(start, again)
        if merge.rule == "lora_B":
            assert not start.any()
        else:
            bound = 1 / np.sqrt(np.prod(start.shape[1:]))  # kaiming_uniform with a = sqrt 5
            assert 0.6 * bound < np.abs(start).max() <= bound
            assert start.min() < 0 < start.max()


def test_dropout_is_of_training_alone(tmp_path: Path) -> None:
    net, (image,) = adaptable()
    artifact = onnxft.export(net, (image,), tmp_path / "a", method="lora:3", lora_dropout=0.4, input_names=["image"])
    batch = {"image": image.numpy(), "labels": np.array([4, 0, 1, 3])}
    losses = []
    for seed in (0, 0, 1):
        with onnxft.TrainSession(artifact, threads=1, seed=seed) as session:
            session.set_parameters(values(session))
            evaluated = session.evaluate(batch).loss
            losses.append(session.step(batch, lr=1e-3).loss)
    assert losses[0] == losses[1]
    assert len({losses[0], losses[2], evaluated}) == 3
    (ports,) = {len(session.manifest.graph(role).named("random")) for role in ("train", "gradients")}
    assert ports == len(LAYERS)
    assert not session.manifest.graph("eval").named("random")


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_of_a_file_are_adapted_as_they_are_stored(tmp_path: Path, transposed: bool) -> None:
    """(in, out) as MatMul and Gemm take it, (out, in) behind a Transpose; a Gemm's alpha counts for both ways."""
    weight = random(7, 5)
    body = """
        g (float[N,3,7] x) => (float[N,5] y) {
            w2 = Transpose<perm=[1,0]>(w)
            h = MatMul(x, w2)
            t = Tanh(h)
            z = ReduceMean<keepdims=0>(t, axes)
            y = Gemm<alpha=0.5, beta=2.0>(z, v, c)
        }
    """
    if not transposed:
        body = body.replace("w2 = Transpose<perm=[1,0]>(w)", "w2 = Identity(w)")
    path = save(
        body, tmp_path / "model.onnx", w=weight.T.copy() if transposed else weight, axes=np.array([1]),
        v=random(5, 5, seed=1), c=random(5, seed=2),
    )  # fmt: skip
    artifact = onnxft.export(path, directory=tmp_path / "a", method="lora:2", lora_targets=["w", "v"], lora_alpha=3.0)
    x = random(4, 3, 7, seed=3)
    with onnxft.TrainSession(artifact, threads=1) as session:
        made = values(session)
        session.set_parameters(made)
        (outputs,) = session.predict({"x": x}).values()
        assert session.export_adapter(tmp_path / "adapter") == "'w' is not the weight of a torch module"
        assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["adapter.onnx_adapter"]
    changes = {name: 1.5 * made[f"{name}.lora_B"] @ made[f"{name}.lora_A"] for name in "wv"}
    z = np.tanh(x @ (weight + changes["w"].T)).mean(1)
    expected = 0.5 * z @ (random(5, 5, seed=1) + changes["v"].T) + 2.0 * random(5, seed=2)
    assert np.abs(outputs - expected).max() < 1e-5


def test_the_frozen_part_before_the_first_adapter_is_still_cut_off(tmp_path: Path) -> None:
    artifact = onnxft.export(
        save_mlp(tmp_path / "m.onnx"), directory=tmp_path / "a", method="lora:2", lora_targets=["fc2_weight"]
    )
    with onnxft.TrainSession(artifact, threads=1) as session:
        assert [p.name for p in session.manifest.features]
        batch = {"x": random(6, 7), "labels": np.arange(6) % 5}
        features = {**session.features({"x": batch["x"]}), "labels": batch["labels"]}
        assert session.evaluate(features).loss == session.evaluate(batch).loss
        assert session.manifest.work is not None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_that_is_used_twice_has_one_adapter(tmp_path: Path, dropout: float) -> None:
    body = """
        g (float[N,6] x) => (float[N,4] y) {
            a = MatMul(x, w)
            b = Tanh(a)
            c = MatMul(b, w)
            y = MatMul(c, v)
        }
    """
    w, v = random(6, 6), random(6, 4)
    path = save(body, tmp_path / "model.onnx", w=w, v=v)
    artifact = onnxft.export(path, directory=tmp_path / "a", method="lora:2", lora_targets=["w"], lora_dropout=dropout)
    x = random(5, 6, seed=3)
    with onnxft.TrainSession(artifact, threads=1) as session:
        made = values(session)
        session.set_parameters(made)
        (outputs,) = session.predict({"x": x}).values()
        assert len(session.manifest.graph("train").named("random")) == (2 if dropout else 0)
    own = w + 2.0 * (made["w.lora_B"] @ made["w.lora_A"]).T
    assert np.abs(outputs - np.tanh(x @ own) @ own @ v).max() < 1e-5


def test_half_precision_graphs_have_the_adapters_too(tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "m.onnx")
    artifact = onnxft.export(path, directory=tmp_path / "a", method="lora:2,head", precision=["bfloat16"])
    with onnxft.TrainSession(artifact, threads=1) as session:
        ports = session.manifest.graph("gradients", "bfloat16").named("parameter")
        assert {p.name for p in ports} == session.parameters.keys()
        assert {"fc1_weight.lora_A", "fc1_weight.lora_B"} < session.parameters.keys()
