"""Frozen weights in fewer bytes: their values, and outputs and gradients as with the widened weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx_models import random, save
from safetensors.numpy import load_file
from torch import nn
from training_fake_session import StopAfter

import onnxft
from onnxft import api
from onnxft.errors import ConfigError, ModelError
from onnxft.manifest_file import read_manifest
from onnxft.runtime import sessions
from onnxft.runtime.session import TrainSession
from onnxft.step.frozen.narrow import narrow
from onnxft.step.frozen.store import PRECISIONS, store_frozen
from onnxft.training.loop import run
from onnxft.training.outcome import Run

NARROW = [p for p in PRECISIONS if p != "float32"]
ROWS = 5
BYTES = {"int8": 1, "float16": 2, "bfloat16": 2}
RESOLUTION = {"int8": 0.5 / 127, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest error over the largest value of a channel."""


# ----- models: what is trained lies before and behind what is frozen -----


class Convolutions(nn.Module):
    """Plain, grouped and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1)
        self.conv = nn.Conv2d(6, 9, (4, 3), stride=(1, 2), padding=1)
        self.grouped = nn.Conv2d(9, 12, (3, 4), groups=3, padding=2)
        self.up = nn.ConvTranspose2d(12, 10, (3, 2), groups=2, stride=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.grouped(torch.relu(self.conv(self.first(x)))))
        return self.head(self.up(x).mean((2, 3)))


class Linears(nn.Module):
    """Layers with and without bias over tokens, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Linear(6, 14), nn.Linear(14, 19)
        self.twice, self.head = nn.Linear(19, 19, bias=False), nn.Linear(19, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(torch.tanh(self.first(x))))
        return self.head(self.twice(torch.tanh(self.twice(x))).mean(1))


class Tied(nn.Module):
    """A table whose rows are looked up, and which is multiplied by transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(47, 9), nn.Embedding(43, 9)
        self.between, self.out = nn.Linear(9, 9), nn.Linear(9, 47, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("order", torch.arange(6), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens) + self.places(self.order)
        return self.out(torch.tanh(self.between(x))).mean(1)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    return Convolutions(), torch.randn(ROWS, 2, 7, 9)


def linears() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(2)
    return Linears(), torch.randn(ROWS, 3, 6)


def tied() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    return Tied(), torch.randint(0, 47, (ROWS, 6))


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor]], list[str], dict[str, int]]] = {
    # model: factory, what is trained, {frozen weight: axis of its channels}
    "convolutions": (convolutions, ["first.*", "head.*"], {"conv.weight": 0, "grouped.weight": 0, "up.weight": 1}),
    "linears": (linears, ["first.*", "head.*"], {"wide.weight": 0, "twice.weight": 0}),
    "tied": (tied, ["between.*"], {"table.weight": 0, "places.weight": 0}),
}


def widened(artifact: Path, weight: str, axis: int) -> np.ndarray:
    """A weight as numpy widens what the artifact holds."""
    held = load_bytes(artifact, weight)
    if held.dtype != np.int8:
        return held.astype(np.float32)
    held = held.squeeze(1) if weight != "places.weight" else held  # only looked up
    scale = load_file(artifact / "frozen.safetensors")[f"{weight}.stored.scale"]
    return (held.astype(np.float32) * np.expand_dims(scale, [i for i in range(held.ndim) if i != axis])).astype("f4")


def load_bytes(artifact: Path, weight: str) -> np.ndarray:
    from safetensors.torch import load_file as load_torch  # numpy's has no bfloat16

    held = load_torch(artifact / "frozen.safetensors")[f"{weight}.stored"]
    return held.numpy() if held.dtype != torch.bfloat16 else held.float().numpy()


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_torch_with_the_widened_weights(
    name: str, precision: str, tmp_path: Path
) -> None:
    make, trainable, weights = CASES[name]
    net, x = make()
    artifact = onnxft.export(net, x, tmp_path / "a", trainable=trainable, input_names=["x"], frozen_precision=precision)
    for weight, axis in weights.items():
        own, wide = net.get_parameter(weight).detach().numpy(), widened(artifact, weight, axis)
        others = tuple(i for i in range(own.ndim) if i != axis)
        allowed = RESOLUTION[precision] * np.abs(own).max(others, keepdims=True)
        assert (np.abs(wide - own) <= allowed * 1.001).all()
        assert np.abs(wide - own).max() > 0
        net.get_parameter(weight).data = torch.from_numpy(wide)
    held = load_file(artifact / "frozen.safetensors") if precision != "bfloat16" else {}
    assert not {*weights} & {*held}
    labels = np.arange(ROWS) % 4
    with TrainSession(artifact, threads=1) as session:
        (outputs,) = session.predict({"x": x.numpy()}).values()
        gradients = session.gradients({"x": x.numpy(), "labels": labels})
    expected = net(x)
    assert np.abs(outputs - expected.detach().numpy()).max() < 1e-5
    nn.functional.cross_entropy(expected, torch.from_numpy(labels)).backward()
    assert {n.split(".")[0] + ".*" for n in gradients} == {*trainable}
    for parameter, own in gradients.items():
        reference = net.get_parameter(parameter).grad.numpy()
        assert np.abs(reference).max() > 1e-5
        assert np.abs(own - reference).max() < 1e-4 * np.abs(reference).max(), parameter


LAYOUTS = """
g (float[N,11,3] x) => (float[N,4] y) {
    left = MatMul(w, x)
    turned = Transpose<perm=[0,2,1]>(left)
    rows = Reshape(turned, shape)
    inner = MatMul(rows, m)
    h = Tanh(inner)
    z = Gemm<alpha=0.5, beta=2.0>(h, g, c)
    mean = Reshape(z, back)
    all = ReduceMean<keepdims=0>(mean, axes)
    y = MatMul(all, head)
}
"""


@pytest.mark.parametrize("precision", NARROW)
def test_matrices_of_a_file_are_widened_as_they_are_stored(precision: str, tmp_path: Path) -> None:
    """W x, x W and a Gemm that does not transpose: the channels are the rows of the first, else the columns."""
    w, m, g, c = random(29, 11), random(29, 17), random(17, 23), random(23)
    path = save(
        LAYOUTS, tmp_path / "m.onnx", w=w, m=m, g=g, c=c, head=random(23, 4), axes=np.array([1]),
        shape=np.array([-1, 29]), back=np.array([-1, 3, 23]),
    )  # fmt: skip
    artifact = onnxft.export(path, directory=tmp_path / "a", trainable=["head"], frozen_precision=precision)
    w, m, g = (narrow("", v, axis, precision).widened() for v, axis in ((w, 0), (m, 1), (g, 1)))
    x = random(ROWS, 11, 3, seed=1)
    rows = np.einsum("oi,nir->nro", w, x)
    expected = ((np.tanh(rows @ m) @ g) * 0.5 + 2 * c).mean(1) @ random(23, 4)
    with TrainSession(artifact, threads=1) as session:
        (outputs,) = session.predict({"x": x}).values()
        session.export_model(tmp_path / "out.onnx")
    assert np.abs(outputs - expected).max() < 1e-5 * max(np.abs(expected).max(), 1)
    (exported,) = ort.InferenceSession(tmp_path / "out.onnx").run(None, {"x": x})
    assert np.abs(exported - expected).max() < 1e-5 * max(np.abs(expected).max(), 1)


# ----- values -----


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 100), 0), ((3, 100), 1), ((4, 3, 5), 1), ((6, 2, 3, 4), 0), ((7,), 0)]
)
def test_int8_is_the_nearest_of_127_steps_of_its_channel(shape: tuple[int, ...], axis: int) -> None:
    weight = random(*shape)
    np.moveaxis(weight, axis, 0)[1] = 0  # a channel of zeros
    np.moveaxis(weight, axis, 0)[2] *= 1e-3
    made = narrow("w", weight, axis, "int8")
    channels, found = np.moveaxis(weight, axis, 0), np.moveaxis(made.values, axis, 0)
    assert made.values.dtype == np.int8
    for channel, integers, scale in zip(channels, found, made.scale, strict=True):
        largest = np.abs(channel).max()
        assert scale == (np.float32(largest / np.float32(127)) if largest else 1)
        assert np.array_equal(integers, np.round(channel / scale))
        assert np.abs(integers).max() == (127 if largest else 0)
    assert np.abs(made.widened() - weight).max() <= np.abs(weight).max() / 254 * 1.001


@pytest.mark.parametrize(
    ("value", "precision", "words"),
    [
        (np.nan, "int8", "'w' has values that are not finite, so that it cannot be stored in int8"),
        (np.inf, "bfloat16", "'w' has values that are not finite"),
        (-7e4, "float16", r"'w' has the value 70000, which float16 cannot hold. Take --frozen-precision bfloat16"),
    ],
)
def test_what_a_precision_cannot_hold_is_refused(value: float, precision: Any, words: str) -> None:
    weight = random(3, 4)
    weight[2, 1] = value
    with pytest.raises(ModelError, match=words):
        narrow("w", weight, 0, precision)


# ----- what is stored, and what stays -----


@pytest.mark.parametrize("precision", NARROW)
def test_the_manifest_says_how_many_bytes_and_how_wrong(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(120, 150), nn.Tanh(), nn.Linear(150, 130), nn.Tanh(), nn.Linear(130, 3))
    artifact = onnxft.export(net, torch.randn(4, 120), tmp_path / "a", trainable=["4.*"], frozen_precision=precision)
    found = read_manifest(artifact).frozen_weights
    assert found is not None and found.outputs is not None
    values, biases = 120 * 150 + 150 * 130, 150 + 130
    scales = 4 * biases if precision == "int8" else 0
    assert (found.precision, found.stored) == (precision, 2)
    assert found.float32_bytes == 4 * (values + biases)
    assert found.bytes == values * BYTES[precision] + scales + 4 * biases
    assert found.ratio < {"int8": 0.3, "float16": 0.51, "bfloat16": 0.51}[precision]
    assert 0 < found.weights.mean < RESOLUTION[precision] * 2
    assert 0 < found.weights.max <= RESOLUTION[precision] * 1.001
    assert 0 < found.outputs.mean < 10 * RESOLUTION[precision]
    size = (artifact / "frozen.safetensors").stat().st_size
    assert found.bytes < size < found.bytes + 1000


def float32_bytes(path: Path) -> int:
    """Of the largest float32 constant of a graph."""
    graph = onnx.load(path, load_external_data=False).graph
    return max(
        (4 * int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT), default=0
    )


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", CASES)
def test_no_session_that_trains_holds_a_weight_in_float32(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime would widen what is constant when it opens: its optimized graphs are read."""
    make, trainable, weights = CASES[name]
    net, x = make()
    monkeypatch.setattr("onnxft.runtime.sessions._MAX_FOLDED", 512)  # these weights are small
    artifact = onnxft.export(net, x, tmp_path / "a", trainable=trainable, input_names=["x"], frozen_precision=precision)
    options, count = sessions._session_options, iter(range(9))

    def kept(*args: Any) -> Any:
        made = options(*args)
        made.optimized_model_filepath = str(tmp_path / f"{next(count)}.onnx")
        return made

    monkeypatch.setattr(sessions, "_session_options", kept)
    with TrainSession(artifact, threads=1) as session:
        session.evaluate({"x": x.numpy(), "labels": np.zeros(ROWS, np.int64)})
    files = sorted(tmp_path.glob("*.onnx"))
    assert len(files) == 2  # train, eval
    smallest = min(net.get_parameter(weight).numel() for weight in weights)
    for file in files:
        assert float32_bytes(file) < 4 * smallest
        operators = {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
        assert operators & {"DequantizeLinear", "Cast"}
        assert not any("NBits" in operator or "Integer" in operator for operator in operators)


@pytest.mark.parametrize("precision", NARROW)
def test_the_backward_pass_widens_anew_when_the_gradient_is_there(precision: str, tmp_path: Path) -> None:
    """Else each weight would be held in float32 from its forward pass to its backward pass."""
    make, trainable, _ = CASES["linears"]
    net, x = make()
    artifact = onnxft.export(net, x, tmp_path / "a", trainable=trainable, frozen_precision=precision)
    for role in ("train", "gradients"):
        nodes = onnx.load(artifact / f"{role}.onnx", load_external_data=False).graph.node
        maker = {value: node for node in nodes for value in node.output}
        kinds = {"DequantizeLinear"} if precision == "int8" else {"Cast"}
        widening = [n for n in nodes if n.op_type in kinds and n.attribute[0].i != onnx.TensorProto.BOOL]
        stored = [n for n in widening if "stored" in n.input[0] or maker[n.input[0]].op_type == "Reshape"]
        waiting = [n for n in stored if any(maker[v].op_type in ("Where", "Reshape") for v in n.input if v in maker)]
        # wide, twice for the forward pass; wide, twice and once more for the way back
        assert (len(stored), len(waiting)) == (5, 3)


def test_small_weights_and_those_that_others_read_stay_float32(tmp_path: Path) -> None:
    body = """
        g (float[N,12] x) => (float[N,3] y) {
            scaled = Mul(scale, both)
            a = MatMul(x, both)
            b = MatMul(x, scaled)
            c = MatMul(x, product)
            s = Sum(a, b, c)
            d = MatMul(s, small)
            e = MatMul(d, flat)
            f = MatMul(e, thin)
            h = MatMul(d, head)
            y = Add(h, f)
        }
    """
    weights = {
        "both": random(12, 31),
        "product": random(12, 31),
        "small": random(31, 8),
        "flat": random(8, 300),
        "thin": random(300, 3),
        "head": random(8, 3),
    }
    path = save(body, tmp_path / "m.onnx", scale=random(1, 31), **weights)
    made = api.plan(path, trainable=["head"])
    stored = store_frozen(made.forward, made.selection, "int8")
    assert stored.forward.stored == ("product.stored", "flat.stored", "thin.stored")
    assert {"both", "small", "head"} < {*stored.forward.train.graph.initializers}
    assert "product" in made.forward.train.graph.initializers, "the model itself is not changed"


# ----- what a run hands on -----


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", CASES)
def test_the_exported_model_holds_the_stored_weights_and_gives_the_same(
    name: str, precision: str, tmp_path: Path
) -> None:
    make, trainable, weights = CASES[name]
    net, x = make()
    artifact = onnxft.export(net, x, tmp_path / "a", trainable=trainable, input_names=["x"], frozen_precision=precision)
    with TrainSession(artifact, threads=1) as session:
        for _ in range(2):
            session.step({"x": x.numpy(), "labels": np.arange(ROWS) % 4}, lr=1e-2)
        (outputs,) = session.predict({"x": x.numpy()}).values()
        session.export_model(tmp_path / "model.onnx")
    (exported,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    assert np.abs(exported - outputs).max() < 1e-5
    held = {t.name for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert {f"{weight}.stored" for weight in weights} <= held
    assert not {*weights} & held


@pytest.mark.parametrize("precision", NARROW)
def test_adapters_are_merged_into_the_widened_weights(precision: str, tmp_path: Path) -> None:
    make, _, weights = CASES["linears"]
    net, x = make()
    artifact = onnxft.export(
        net, x, tmp_path / "a", method="lora:2", lora_targets=["wide.*", "twice.*"], input_names=["x"],
        frozen_precision=precision,
    )  # fmt: skip
    with TrainSession(artifact, threads=1) as session:
        made = {name: random(*value.shape, seed=5) for name, value in session.parameters.items()}
        session.set_parameters(made)
        (outputs,) = session.predict({"x": x.numpy()}).values()
        gradients = session.gradients({"x": x.numpy(), "labels": np.arange(ROWS) % 4})
        session.export_model(tmp_path / "model.onnx")
        session.export_adapter(tmp_path / "adapter")
    for weight, axis in weights.items():
        change = 2 * made[f"{weight}.lora_B"] @ made[f"{weight}.lora_A"]
        net.get_parameter(weight).data = torch.from_numpy(widened(artifact, weight, axis) + change)
    expected = net(x).detach().numpy()
    assert np.abs(outputs - expected).max() < 1e-5 * np.abs(expected).max()
    assert all(np.abs(g).max() > 0 for g in gradients.values())
    (merged,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    assert np.abs(merged - expected).max() < 1e-5 * np.abs(expected).max()
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(tmp_path / "adapter" / "adapter.onnx_adapter"))
    options.add_active_adapter(adapter)
    (adapted,) = ort.InferenceSession(artifact / "infer_adapter.onnx").run(None, {"x": x.numpy()}, options)
    assert np.abs(adapted - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its frozen weights in int8; the last layer is trained."""
    net, x = linears()
    place = tmp_path_factory.mktemp("artifact") / "int8"
    made = onnxft.export(net, x, place, trainable=["head.*"], input_names=["x"], frozen_precision="int8")
    assert read_manifest(made).features
    return made


def train(artifact: Path, place: Path, cache: str, **how: Any) -> Run:
    data = {"x": random(4 * ROWS, 3, 6), "labels": np.arange(4 * ROWS) % 4}
    return run(artifact, data, {"lr": 1e-2, "threads": 1, "cache": cache, "epochs": 4}, run_dir=place, **how)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_an_interrupted_run_goes_on_bit_for_bit(cache: str, artifact: Path, tmp_path: Path) -> None:
    whole = train(artifact, tmp_path / "whole", "off")
    assert train(artifact, tmp_path / "stopped", cache, progress=StopAfter(6)).end == "interrupted"
    assert train(artifact, tmp_path / "stopped", cache, resume=True).end == "complete"
    for name in ("results.csv", "weights/best.safetensors", "weights/last.safetensors", "model.onnx"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole.directory / name).read_bytes(), name


def test_the_model_of_a_run_gives_what_the_session_gives(artifact: Path, tmp_path: Path) -> None:
    x, whole = random(24, 3, 6, seed=4), train(artifact, tmp_path / "run", "auto")
    with TrainSession(artifact, threads=1) as session:
        session.set_parameters(load_file(whole.directory / "weights" / "best.safetensors"))
        (own,) = session.predict({"x": x}).values()
    (best,) = ort.InferenceSession(whole.directory / "model.onnx").run(None, {"x": x})
    assert np.abs(own - best).max() < 1e-5


def test_the_trunk_hands_on_what_the_whole_model_computes(tmp_path: Path) -> None:
    net, x = linears()
    planned = api.plan(net, x, trainable=["head.*"], input_names=["x"])
    kept = {}
    for name, precision in (("cut", "int8"), ("plain", "float32")):
        planned.write(tmp_path / name, batch_size=ROWS, frozen_precision=precision)
        kept[name] = read_manifest(tmp_path / name)
    assert [p.name for p in kept["cut"].features] == [p.name for p in kept["plain"].features]
    assert kept["cut"].work == kept["plain"].work, "work is counted on the model, not on how its weights are stored"
    assert kept["cut"].files["trunk.onnx"] != kept["plain"].files["trunk.onnx"], "so that no kept feature fits both"


# ----- bad input -----


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"frozen_precision": "int4"}, ConfigError, "frozen weights cannot be stored in 'int4'"),
        ({"frozen_precision": "Int8"}, ConfigError, "int8"),
        (
            {"frozen_precision": "int8", "generator": "ort-training"},
            ConfigError,
            "frozen weights in 'int8' are for the generator 'native'",
        ),
        ({"frozen_precision": "int8", "trainable": ["*"]}, ConfigError, "has no frozen weight to store in int8"),
        ({"frozen_precision": "float16", "trainable": ["wide.*", "twice.*"]}, ConfigError, "no frozen weight to store"),
        (
            {"frozen_precision": "float16", "spoil": 1e30},
            ModelError,
            "'wide.weight' has the value 1e.30, which float16",
        ),
        ({"frozen_precision": "int8", "spoil": np.nan}, ModelError, "'wide.weight' has values that are not finite"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    net, x = linears()
    options = {"trainable": ["head.*"], **options}
    if spoil := options.pop("spoil", None):
        net.get_parameter("wide.weight").data[3, 2] = spoil
    with pytest.raises(error, match=words):
        onnxft.export(net, x, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
