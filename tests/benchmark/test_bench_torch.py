"""The torch baseline against torch itself, on an artifact without graphs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save_file

from onnxft.benchmark.config import BenchConfig, Side
from onnxft.benchmark.exchange import Request
from onnxft.errors import ArtifactError, ModelError
from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.manifest import (
    BATCH,
    FILE_NAME,
    FROZEN_FILE,
    PARAMETERS_FILE,
    Buffer,
    ByteRange,
    GraphFile,
    Loss,
    Manifest,
    Optimizer,
    Parameter,
    ParameterGroup,
    Port,
)
from onnxft.manifest_file import manifest_json, read_manifest
from onnxft.runtime.random_batch import _labels, random_batch
from onnxft.step.losses import label_type, loss_builder

torch = pytest.importorskip("torch", reason="torch is not installed")
torch_baseline = pytest.importorskip("onnxft.benchmark.torch_baseline")
torch_model = pytest.importorskip("onnxft.benchmark.torch_model")

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.stem, self.norm, self.drop = nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.fc = nn.Linear(3, classes)

    def forward(self, image):
        return {"features": image, "logits": self.fc(self.drop(torch.relu(self.norm(self.stem(image)))))}

def make():
    return Net(), (torch.zeros(2, 5),)

def make_named():
    return Net(), {"image": torch.zeros(2, 5)}

def other_classes():
    return Net(classes=7), (torch.zeros(2, 5),)

def two_inputs():
    return Net(), (torch.zeros(2, 5), torch.zeros(2, 5))

class Single(Net):
    def forward(self, image):
        return super().forward(image)["logits"]

def one_output():
    return Single(), (torch.zeros(2, 5),)
"""

VALUES = {
    "fc.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "fc.bias": np.array([0.1, -0.2, 0.3, -0.4], np.float32),
}
FROZEN = {
    "stem.weight": np.linspace(1, -1, 15, dtype=np.float32).reshape(3, 5),
    "stem.bias": np.array([0.5, 0.25, 0.75], np.float32),
    "norm.running_mean": np.array([0.1, 0.2, -0.3], np.float32),
    "norm.running_var": np.array([0.5, 2.0, 1.5], np.float32),
    "a_constant_of_the_graph": np.zeros(9, np.float32),
}
INPUTS = (Port("image", "input", "float32", (BATCH, 5)), Port("labels", "label", "int64", (BATCH,)))
OUTPUTS = tuple(Port(name, "output", "float32", (BATCH, n)) for name, n in (("features", 5), ("logits", 4)))
MANIFEST = Manifest(
    name="net",
    generator="native",
    batch_size=6,
    graphs={"train": GraphFile("t.onnx", INPUTS), "eval": GraphFile("e.onnx", INPUTS, OUTPUTS)},
    parameters=(Parameter("fc.weight", (4, 3), "float32"), Parameter("fc.bias", (4,), "float32")),
    loss=Loss("cross_entropy", "logits", num_classes=4),
    optimizer=Optimizer("adamw", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}, weight_decay=0.02),
    frozen_parameters=24,
)


def statistics(layer: str) -> tuple[Buffer, ...]:
    return (Buffer(f"{layer}.running_mean", (3,), "float32", "mean", layer, (BATCH,)),)


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    """(factory, manifest) -> request for the torch side."""

    def request_of(
        factory: str = "make",
        manifest: Manifest = MANIFEST,
        *,
        ranges: bool = False,
        side: str = "torch",
        providers: tuple[str, ...] = ("cpu",),
        scenario: Any = "train",
    ) -> Request:
        (tmp_path / "net.py").write_text(SOURCE)
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        if ranges:  # as the ort-training generator leaves them
            raw = b"head" + VALUES["fc.bias"].tobytes() + VALUES["fc.weight"].tobytes()
            (artifact / "infer.onnx").write_bytes(raw)
            weight, bias = manifest.parameters
            weight = replace(weight, inference=ByteRange("infer.onnx", 20, 48))
            manifest = replace(manifest, parameters=(weight, replace(bias, inference=ByteRange("infer.onnx", 4, 16))))
        else:
            save_file(VALUES, artifact / PARAMETERS_FILE)
        save_file(FROZEN, artifact / FROZEN_FILE)
        for name in ("t.onnx", "e.onnx"):
            (artifact / name).write_bytes(b"\x08\x0a")  # ir_version 10 and no graph: no side opens it
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in artifact.iterdir()}
        (artifact / FILE_NAME).write_bytes(manifest_json(replace(manifest, files=files)))
        source = f"{tmp_path / 'net.py'}:{factory}"
        config = BenchConfig(
            providers=providers, baselines=(side,), source=source, scenario=scenario, min_steps=2, min_seconds=0,
            warmup_steps=1,
        )  # fmt: skip
        return Request(str(artifact), Side(side, "baseline"), config, 6, 1, str(tmp_path / "r"), str(tmp_path / "g"))

    return request_of


def expected_features_and_logits() -> tuple[np.ndarray, np.ndarray]:
    """In NumPy, with B rows, F features, C classes."""
    z_BF = random_batch(MANIFEST, 6, seed=0)["image"] @ FROZEN["stem.weight"].T + FROZEN["stem.bias"]
    h_BF = np.maximum((z_BF - FROZEN["norm.running_mean"]) / np.sqrt(FROZEN["norm.running_var"] + 1e-5), 0)
    return h_BF, h_BF @ VALUES["fc.weight"].T + VALUES["fc.bias"]


def expected_loss_and_gradients() -> tuple[float, dict[str, np.ndarray]]:
    """In NumPy, likewise."""
    batch = random_batch(MANIFEST, 6, seed=0)
    h_BF, s_BC = expected_features_and_logits()
    p_BC = np.exp(s_BC) / np.exp(s_BC).sum(1, keepdims=True)
    loss = float(-np.log(p_BC[np.arange(6), batch["labels"]]).mean())
    d_BC = (p_BC - np.eye(4)[batch["labels"]]) / 6
    return loss, {"fc.weight": d_BC.T @ h_BF, "fc.bias": d_BC.sum(0)}


@pytest.mark.parametrize(("factory", "ranges"), [("make", False), ("make_named", False), ("make", True)])
def test_loss_and_gradients_are_those_of_the_artifact_s_values(request_of: Any, factory: str, ranges: bool) -> None:
    measurement, gradients = torch_baseline.run(request_of(factory, ranges=ranges))
    loss, expected = expected_loss_and_gradients()
    assert measurement.loss == pytest.approx(loss, rel=1e-5)
    assert set(gradients) == set(expected)
    for name, g in expected.items():
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-6)
    assert len(measurement.step_seconds) == 2
    assert len(measurement.warmup_seconds) == 1
    assert measurement.provider_obtained == "torch"
    assert measurement.versions == {"torch": torch.__version__}


def test_bfloat16_is_autocast_with_float32_weights(request_of: Any) -> None:
    measurement, gradients = torch_baseline.run(request_of(side="torch:bfloat16"))
    loss, expected = expected_loss_and_gradients()
    assert (measurement.precision, measurement.options["autocast"]) == ("bfloat16", "bfloat16")
    assert measurement.loss == pytest.approx(loss, rel=2e-2)
    assert measurement.loss != pytest.approx(loss, rel=1e-5)  # 8 bits of mantissa were really used
    for name, g in expected.items():
        assert gradients[name].dtype == np.float32
        np.testing.assert_allclose(gradients[name], g, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("side", ["torch", "torch-compile", "torch:bfloat16"])
def test_inference_gives_the_outputs_and_trains_nothing(
    request_of: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    # A trained BatchNorm has its running statistics in inference.
    request = request_of(side=side, scenario="inference", manifest=replace(MANIFEST, buffers=statistics("norm")))
    measurement, outputs = torch_baseline.run(request)
    tolerance = 0.05 if "bfloat16" in side else 1e-5
    np.testing.assert_allclose(outputs["logits"], expected_features_and_logits()[1], rtol=tolerance, atol=tolerance)
    assert set(outputs) == {"features", "logits"}
    assert measurement.loss == pytest.approx(expected_loss_and_gradients()[0], rel=tolerance)
    assert len(measurement.step_seconds) == 2


def test_the_compiled_step_computes_the_same(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(function: Any, **options: Any) -> Any:
        compiled.append(function.__name__)
        return real(function, backend="eager", fullgraph=True, **options)  # the whole loss is one graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    measurement, gradients = torch_baseline.run(request_of("make_named", side="torch-compile"))
    loss, expected = expected_loss_and_gradients()
    assert compiled == ["loss"]
    assert measurement.loss == pytest.approx(loss, rel=1e-5)
    for name, g in expected.items():
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-6)
    assert measurement.provider_obtained == "torch-compile"


def fails_to_compile(message: str) -> Any:
    def backend(graph: Any, examples: Any) -> Any:
        raise RuntimeError(message)

    return partial(torch.compile, backend=backend)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')", "Install one (g++ or clang++)"),
        ("no kernel for this", "no kernel for this"),
    ],
)
def test_a_compiler_that_fails_is_the_reason(
    request_of: Any, message: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", fails_to_compile(message))
    with pytest.raises(ModelError) as caught:
        torch_baseline.run(request_of(side="torch-compile"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the compiler itself
def test_the_real_compiler_computes_the_same(request_of: Any) -> None:
    measurement, gradients = torch_baseline.run(request_of(side="torch-compile"))
    assert measurement.first_step_seconds > 10 * max(measurement.step_seconds)
    for name, g in expected_loss_and_gradients()[1].items():
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("providers", "has_gpu", "device"),
    [
        (("cpu",), True, "cpu"),
        (("cpu", "cuda"), True, "cuda:1"),
        (("tensorrt:float16",), True, "cuda:1"),
        (("cuda",), False, "cpu"),
    ],
)
def test_torch_runs_where_the_providers_do(
    providers: tuple[str, ...], has_gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert str(torch_baseline.choose_device(BenchConfig(providers=providers, device=1))) == device


def test_a_trained_batch_norm_takes_the_statistics_of_the_batch(request_of: Any) -> None:
    measurement, _ = torch_baseline.run(request_of(manifest=replace(MANIFEST, buffers=statistics("norm"))))
    z_BF = random_batch(MANIFEST, 6, seed=0)["image"] @ FROZEN["stem.weight"].T + FROZEN["stem.bias"]
    h_BF = np.maximum((z_BF - z_BF.mean(0)) / np.sqrt(z_BF.var(0) + 1e-5), 0)
    s_BC = h_BF @ VALUES["fc.weight"].T + VALUES["fc.bias"]
    p_BC = np.exp(s_BC) / np.exp(s_BC).sum(1, keepdims=True)
    labels = random_batch(MANIFEST, 6, seed=0)["labels"]
    assert measurement.loss == pytest.approx(float(-np.log(p_BC[np.arange(6), labels]).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("factory", "changes", "words"),
    [
        ("other_classes", {}, "'fc.weight' of shape (4, 3); the source has shape (7, 3)"),
        ("make", {"parameters": (Parameter("fc.scale", (4,), "float32"),)}, "the source has no such parameter"),
        ("two_inputs", {}, "has 2 example inputs, the artifact 1"),
        ("one_output", {}, "returns 1 values where the artifact has features, logits"),
        ("make", {"optimizer": Optimizer("sgd", {"momentum": 0.9, "dampening": 0.1})}, "option(s) dampening"),
        ("make", {"optimizer": Optimizer("lion")}, "torch has no optimizer 'lion'"),
        ("make", {"buffers": statistics("bn")}, "trains the BatchNorm layer 'bn'; the source has nothing of that name"),
        ("make", {"buffers": statistics("fc")}, "trains the BatchNorm layer 'fc'; the source has a Linear there"),
    ],
)
def test_work_that_would_differ_is_refused(request_of: Any, factory: str, changes: Any, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        torch_baseline.run(request_of(factory, replace(MANIFEST, **changes)))
    assert words in str(caught.value)


def test_a_value_outside_the_listed_files_is_not_read(request_of: Any) -> None:
    request = request_of(ranges=True)
    manifest = read_manifest(Path(request.artifact))
    outside = replace(manifest.parameters[0], inference=ByteRange("../net.py", 0, 48))
    manifest = replace(manifest, parameters=(outside, manifest.parameters[1]))
    (Path(request.artifact) / FILE_NAME).write_bytes(manifest_json(manifest))
    with pytest.raises(ArtifactError, match=r"'fc\.weight' lies in the file '\.\./net\.py', which has no sha256"):
        torch_baseline.run(request)


@pytest.mark.parametrize(
    ("optimizer", "kind", "options"),
    [
        (MANIFEST.optimizer, "AdamW", {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.02, "lr": 0.5}),
        (Optimizer("sgd", {"momentum": 0.9}, 0.1), "SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": False}),
        (Optimizer("sgd", {"momentum": 0.9, "nesterov": 1.0}), "SGD", {"nesterov": True, "lr": 0.5}),
        (Optimizer("adam", {"beta1": 0.8, "beta2": 0.95}, 0.1), "Adam", {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    ],
)
def test_optimizer_is_the_manifest_s(optimizer: Optimizer, kind: str, options: dict[str, Any]) -> None:
    built = torch_baseline.build_optimizer([torch.nn.Parameter(torch.ones(3))], optimizer, lr=0.5)
    assert type(built).__name__ == kind
    assert {key: built.defaults[key] for key in options} == options


def test_groups_of_the_artifact_have_their_rates() -> None:
    manifest = replace(
        MANIFEST,
        parameters=tuple(
            replace(p, group="free" if p.name.endswith("bias") else "default") for p in MANIFEST.parameters
        ),
        parameter_groups=(ParameterGroup("free", 0.1, 0.0),),
    )
    module = torch.nn.ModuleDict({"stem": torch.nn.Linear(5, 3), "fc": torch.nn.Linear(3, 4)})
    parameters = torch_model.select_trainables(module, manifest)
    default, free = torch_baseline.parameter_groups(parameters, manifest, lr=0.5)
    assert (default["lr"], default["weight_decay"]) == (0.5, manifest.optimizer.weight_decay)
    assert (free["lr"], free["weight_decay"]) == (0.05, 0.0)
    assert free["params"] == [module["fc"].bias]


LOSSES = [
    Loss("cross_entropy", "y", 4, class_weights=(1.0, 2.0, 0.5, 3.0), label_smoothing=0.1),
    Loss("cross_entropy", "y", 4, class_axis=2, ignore_index=1, shift=1),
    Loss("bce_with_logits", "y", 4, pos_weight=(1.0, 2.0, 0.5, 3.0)),
    Loss("bce_with_logits", "y", 4),
    Loss("kl_div", "y", 4),
    Loss("mse", "y"),
    Loss("l1", "y"),
    Loss("huber", "y", delta=0.5),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_the_baseline_has_the_graph_s_loss(loss: Loss) -> None:
    """Both sides on a random batch of the loss; the graph's is run on the reference evaluator."""
    shape: tuple[int | str, ...] = ("batch", 3, 4) if loss.class_axis == 2 else ("batch", 4)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="loss")
    op = builder(graph)
    output = add_input(op, "y", ir.DataType.FLOAT, shape)
    typed = label_type(loss, output)
    assert typed is not None
    labels = add_input(op, "labels", *typed)
    weights = add_input(op, "weights", ir.DataType.FLOAT, ["batch"])
    terms = loss_builder(loss.kind)(op, loss, output, labels, weights)
    graph.outputs.extend([terms.loss_sum, terms.weight_sum])
    rng = np.random.default_rng(0)
    port = Port("labels", "label", typed[0].numpy().name, tuple(d for d in typed[1] if d is not None))
    y = rng.standard_normal((6, *shape[1:])).astype(np.float32)
    drawn = _labels(rng, port, {"batch": 6}, loss)
    feeds = {"y": y, "labels": drawn, "weights": np.ones(6, np.float32)}
    total, weight = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))).run(None, feeds)
    found = torch_model.mean_loss(loss, torch.tensor(y), torch.tensor(drawn))
    assert float(found) == pytest.approx(float(total) / float(weight), rel=1e-5)


def test_only_the_artifact_s_parameters_are_trained() -> None:
    module = torch.nn.ModuleDict({"stem": torch.nn.Linear(5, 3), "fc": torch.nn.Linear(3, 4)})
    assert list(torch_model.select_trainables(module, MANIFEST)) == ["fc.weight", "fc.bias"]
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
