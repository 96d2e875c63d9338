"""Methods: how they are written, the blocks of a model, and which parameters each trains."""

from __future__ import annotations

from functools import cache
from typing import Any

import models
import pytest
from onnx_models import random, save

from onnxft.api import plan
from onnxft.errors import ConfigError, SelectionError
from onnxft.graph.forward import Forward
from onnxft.step.methods.apply import apply_method
from onnxft.step.methods.blocks import find_blocks
from onnxft.step.methods.method import Lora, Method, parse_method
from onnxft.step.select import select


@pytest.mark.parametrize(
    ("text", "options", "method"),
    [
        (None, {}, None),
        ("full", {}, Method((("full", 0),))),
        ("last:12", {}, Method((("last", 12),))),
        ("lora", {}, Method((), Lora(8, 16.0))),
        ("lora:3", {"lora_alpha": 5.0, "lora_dropout": 0.1}, Method((), Lora(3, 5.0, 0.1))),
        (
            "head, lora:4 ,bias",
            {"lora_targets": ["a.*"]},
            Method((("head", 0), ("bias", 0)), Lora(4, 8.0, 0.0, ("a.*",))),
        ),
    ],
)
def test_methods_are_read(text: str | None, options: dict[str, Any], method: Method | None) -> None:
    assert parse_method(text, **options) == method


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "unknown method ''"),
        ("loro", {}, "unknown method 'loro'. Did you mean 'lora'?"),
        ("head,head", {}, "names 'head' twice"),
        ("lora,lora:2", {}, "names 'lora' twice"),
        ("last", {}, "'last' needs a whole number of at least 1, such as last:2"),
        ("last:0", {}, "'last:0' needs a whole number of at least 1"),
        ("lora:x", {}, "'lora:x' needs a whole number of at least 1, such as lora:8"),
        ("lora:", {}, "'lora:' needs a whole number"),
        ("head:2", {}, "the method 'head' takes no number; leave ':2' out"),
        ("lora", {"lora_alpha": 0.0}, "lora_alpha is 0.0; it must be finite and above 0"),
        ("lora", {"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ("lora", {"lora_dropout": 1.0}, "lora_dropout is 1.0; it must be at least 0 and below 1"),
        ("head", {"lora_alpha": 2.0}, "lora_alpha belongs to the method lora, method is head"),
        (None, {"lora_targets": ["a"]}, "lora_targets belongs to the method lora, method is None"),
    ],
)
def test_what_is_no_method_is_an_error(text: str | None, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as err:
        parse_method(text, **options)
    assert words in str(err.value)


# ----- blocks -----

BLOCKS = {
    # model: blocks, head
    "adaptable": (("layers.0", "layers.1", "layers.2"), ("head.weight", "head.bias")),
    "transformer": (("between.0", "between.1"), ("head.weight", "head.bias")),
    "efficientnet": (
        tuple(f"_blocks.{i}" for i in range(16)),
        ("_conv_head.weight", "_bn1.weight", "_bn1.bias", "_fc.weight", "_fc.bias"),
    ),
    "mlp": (("fc1", "fc2"), ("fc3.weight", "fc3.bias")),  # a row of layers, of which the last is the head
    "digits": (("0", "3"), ("6.weight", "6.bias")),
    "convnet": ((), ("fc.weight", "fc.bias")),  # its two normalisations are no blocks
    "embedding": ((), ("head.weight", "head.bias")),
}


@cache
def forward_of(name: str) -> Forward:
    return plan(*getattr(models, name)()).forward


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found_from_names_and_graph(name: str) -> None:
    found = find_blocks(forward_of(name))
    assert (tuple(found.blocks), found.head) == BLOCKS[name]
    for block, own in found.blocks.items():
        assert own
        assert all(parameter.startswith(f"{block}.") for parameter in own)


NAMELESS = """
g (float[N,4] x) => (float[N,3] y) {
    a = MatMul(x, m_1)
    b = Add(a, layer.0.first.bias)
    c = Tanh(b)
    d = MatMul(c, m_2)
    e = Add(d, layer.0.second.bias)
    f = MatMul(e, m_3)
    h = Add(f, layer.1.first.bias)
    i = MatMul(h, m_4)
    j = Add(i, layer.1.second.bias)
    y = MatMul(j, m_5)
}
"""


def test_weights_without_a_name_belong_to_the_block_around_them(tmp_path: Any) -> None:
    body, sizes = NAMELESS, (4, 5, 6, 7, 8, 3)
    weights = {f"m_{i}": random(*sizes[i - 1 : i + 1]) for i in range(1, 6)}
    for i, name in enumerate(["0.first", "0.second", "1.first", "1.second"]):
        body = body.replace(f"layer.{name}.bias", f"b_{i}")
        weights[f"b_{i}"] = random(sizes[i + 1])
    path = save(body, tmp_path / "model.onnx", **weights)
    import onnx

    model = onnx.load(path)
    for i, name in enumerate(["0.first", "0.second", "1.first", "1.second"]):
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace(f"b_{i}", f"layer.{name}.bias")
        for node in model.graph.node:
            node.input[:] = [x.replace(f"b_{i}", f"layer.{name}.bias") for x in node.input]
    onnx.save(model, path)
    found = find_blocks(plan(path).forward)
    assert {block: set(own) for block, own in found.blocks.items()} == {
        "layer.0": {"layer.0.first.bias", "layer.0.second.bias", "m_2"},  # m_1 stands before all of its names
        "layer.1": {"layer.1.first.bias", "layer.1.second.bias", "m_3", "m_4"},
    }
    assert found.head == ("m_5",)


@pytest.mark.parametrize(
    ("patterns", "blocks"),
    [
        (["layers.*"], ("layers.0", "layers.1", "layers.2")),
        (["layers.*.0", "layers.2.2"], ("layers.0.0", "layers.1.0", "layers.2.0", "layers.2.2")),
        (["conv", "depth"], ("conv", "depth")),
    ],
)
def test_blocks_can_be_named(patterns: list[str], blocks: tuple[str, ...]) -> None:
    assert tuple(find_blocks(forward_of("adaptable"), patterns).blocks) == blocks


def test_a_block_that_is_none_is_an_error() -> None:
    with pytest.raises(SelectionError, match=r"the block 'layer\.\*' matches no module of the model\. Did you mean"):
        find_blocks(forward_of("adaptable"), ["layer.*"])
    with pytest.raises(ConfigError, match=r"blocks \(layers\.\*\) are for a method such as last:2"):
        plan("tests/models.py:adaptable", blocks=["layers.*"])


# ----- what is trained -----

HEAD = ("head.weight", "head.bias")
NORM = ("norm.weight", "norm.bias")
LAST = tuple(f"layers.2.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))
BIASES = (
    "conv.bias",
    "norm.bias",
    "depth.bias",
    *(f"layers.{i}.{j}.bias" for i in range(3) for j in (0, 2)),
    "head.bias",
)


@pytest.mark.parametrize(
    ("method", "train", "freeze", "trained"),
    [
        ("head", None, [], HEAD),
        ("last:1", None, [], (*LAST, *HEAD)),
        ("norm", None, [], NORM),
        ("bias", None, [], BIASES),
        ("norm,head", None, [], (*NORM, *HEAD)),
        ("head", ["token"], ["head.bias"], ("token", "head.weight")),
        ("last:1", None, ["layers.*.0.*"], (*LAST[2:], *HEAD)),
    ],
)
def test_methods_choose(method: str, train: list[str] | None, freeze: list[str], trained: tuple[str, ...]) -> None:
    applied = apply_method(forward_of("adaptable"), parse_method(method), train, freeze)
    assert set(select(applied.forward, applied.trainable, freeze).trainable) == set(trained)


def test_full_is_all_that_the_model_trains() -> None:
    forward = forward_of("adaptable")
    assert apply_method(forward, parse_method("full"), None, []).trainable == ("*",)
    assert apply_method(forward, None, None, []).trainable == ("*",)
    assert apply_method(forward, None, ["head.*"], []).trainable == ("head.*",)


@pytest.mark.parametrize(
    ("model", "method", "words"),
    [
        ("adaptable", "last:4", "last:4 asks for 4 blocks; found are 3 (layers.0, layers.1, layers.2)"),
        ("embedding", "last:1", "found are 0 (none)"),
        ("mlp", "norm", "the method 'norm' finds nothing to train"),
    ],
)
def test_what_a_model_has_not_is_an_error(model: str, method: str, words: str) -> None:
    with pytest.raises(SelectionError) as err:
        apply_method(forward_of(model), parse_method(method), None, [])
    assert words in str(err.value)
