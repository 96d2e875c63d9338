"""The build half of the ort-training generator: lowering, messages, and a worker that misbehaves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from ort_training_models import ADAMW, CASES, CROSS_ENTROPY, HEAD, Case, choose, make_forward

from onnxft.errors import ConfigError, GradientError, ModelError, OnnxftError, ProviderError, SelectionError
from onnxft.generators import ort_training, ort_training_worker
from onnxft.generators.ort_training import PYTHON_VARIABLE, find_python, generate
from onnxft.generators.ort_training_lowering import lower
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import BATCH, Loss, Manifest, Optimizer, ParameterGroup, Port
from onnxft.step.select import Selection

needs_sh = pytest.mark.skipif(os.name == "nt", reason="the stand-in for an interpreter is a shell script")


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0])


def forward_of(build: Callable[[Op, ir.Value, ir.Value], ir.Value], opset: int = 18) -> Forward:
    """A model of one scale `w` (4,) over x (batch, 4), built by `build(op, x, w)`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="small")
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, (BATCH, 4))
    w = op.initializer(ir.tensor(np.linspace(0.5, 2, 4, dtype=np.float32)), name="w")
    y = build(op, x, w)
    y.name = "logits"
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    return Forward("small", model, model, (Tensor("w", (4,), "float32", "parameter"),), ("x",), ("logits",))


def generate_forward(forward: Forward, directory: Path, **changes: object) -> Manifest:
    arguments = {
        "selection": choose("w"),
        "loss": CROSS_ENTROPY,
        "optimizer": ADAMW,
        "directory": directory,
        "batch_size": 6,
        **changes,
    }
    return generate(forward, **arguments)


def generate_case(case: Case, directory: Path, **changes: object) -> Manifest:
    own = {"selection": choose(*case.trainable), "loss": case.loss, "optimizer": case.optimizer}
    return generate_forward(make_forward(case), directory, **{**own, **changes})


def script(path: Path, body: str) -> str:
    """An executable that stands in for the interpreter: its arguments are -I WORKER REQUEST ANSWER."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


# ----- lowering -----


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (HEAD, ["Conv", "Mul", "Add", "Relu", "MaxPool", "Flatten", "Gemm"]),
        (
            (*HEAD, "1.bias"),
            ["Conv", "Mul", "Add", "Reshape", "Mul", "Reshape", "Add", "Relu", "MaxPool", "Flatten", "Gemm"],
        ),
    ],
)
def test_batch_norm_is_decomposed(trained: tuple[str, ...], expected: list[str]) -> None:
    forward = make_forward(CASES["convnet_sgd"])
    before = ir.to_proto(forward.train).SerializeToString()
    model = lower(forward, trained, "logits")
    assert op_types(model) == expected
    assert ("1.running_var" in model.graph.initializers, "1.bias" in model.graph.initializers) == (
        False,
        "1.bias" in trained,
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(0).standard_normal((5, 2, 4, 6), np.float32)
    np.testing.assert_allclose(run(model, x), run(forward.train, x), rtol=1e-4, atol=1e-5)
    assert ir.to_proto(forward.train).SerializeToString() == before, "the forward graph was changed"


def test_batch_norm_that_is_the_output_keeps_its_name() -> None:
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    forward = forward_of(
        lambda op, x, w: op.BatchNormalization(
            x, w, *(op.initializer(ir.tensor(a), name=n) for n, a in (("b", zeros), ("m", zeros + 3), ("v", ones * 2)))
        )
    )
    model = lower(forward, ["w"], "logits")
    assert [v.name for v in model.graph.outputs] == ["logits"]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(run(model, x), run(forward.train, x), rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "outputs"),
    [
        (lambda op, x, w: op.LayerNormalization(x, w, w, axis=-1), 3),
        (lambda op, x, w: op.Dropout(op.Mul(x, w), 0.5), 2),
        (lambda op, x, w: op.Mul(x, w), 1),
    ],
)
def test_outputs_that_the_gradient_builder_reads_are_there(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value], outputs: int
) -> None:
    node = list(lower(forward_of(build), ["w"], "logits").graph)[-1]
    assert len(node.outputs) == outputs
    assert len({v.name for v in node.outputs} - {""}) == outputs


def test_added_outputs_take_no_name_of_the_model() -> None:
    """Exporters number their nodes: layer_norm, layer_norm_1, layer_norm_2."""

    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        for name in ("norm", "norm_1", "norm_2", "norm_1_1"):
            x = op.LayerNormalization(x, w, w, axis=-1)
            x.name = name
        return op.Mul(x, w)

    model = lower(forward_of(build), ("w",), "logits")
    names = [v.name for node in model.graph for v in node.outputs]
    assert len(names) == len(set(names)) == 4 * 3 + 1


def test_versions_are_those_that_the_package_reads() -> None:
    forward = forward_of(lambda op, x, w: op.Mul(x, w))
    forward.train.ir_version = 13
    assert lower(forward, ["w"], "logits").ir_version == 10
    with pytest.raises(ModelError, match=r"opset 22; onnxruntime-training 1\.19\.2 reads at most 21"):
        lower(forward_of(lambda op, x, w: op.Mul(x, w), opset=22), ["w"], "logits")


def test_a_model_too_large_for_its_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxft.generators.ort_training_lowering.MAX_BYTES", 15)
    with pytest.raises(ModelError, match=r"have 16 bytes; .* hold at most 15"):
        lower(forward_of(lambda op, x, w: op.Mul(x, w)), ["w"], "logits")


@pytest.mark.parametrize(
    ("build", "trainable", "output", "error", "words"),
    [
        (lambda op, x, w: op.Mul(x, w), [], "logits", SelectionError, "no parameter is selected"),
        (lambda op, x, w: op.Mul(x, w), ["ww"], "logits", SelectionError, "'ww' is no parameter.*Did you mean 'w'"),
        (lambda op, x, w: op.Mul(x, w), ["w"], "logit", ModelError, "no output 'logit'.*Did you mean 'logits'"),
        (lambda op, x, w: op.Relu(x), ["w"], "logits", SelectionError, "'w' does not reach the output 'logits'"),
        (
            lambda op, x, w: op.Mul(x, op.Cast(op.initializer(ir.tensor([1, 2, 3, 4]), name="n"), to=1)),
            ["n"],
            "logits",
            SelectionError,
            "'n' has the element type INT64; .* float32",
        ),
        (
            lambda op, x, w: op.BatchNormalization(x, w, w, w, w, training_mode=1, _outputs=3)[0],
            ["w"],
            "logits",
            GradientError,
            "is in training mode",
        ),
        (
            lambda op, x, w: op.BatchNormalization(x, w, w, w, op.Abs(w)),
            ["w"],
            "logits",
            GradientError,
            "computed at run time",
        ),
    ],
)
def test_what_cannot_be_lowered_is_named(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value],
    trainable: list[str],
    output: str,
    error: type[OnnxftError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        lower(forward_of(build), trainable, output)


# ----- options -----


@pytest.mark.parametrize(
    ("case", "changes", "error", "words"),
    [
        ("mlp_sgd", {"optimizer": Optimizer("lion")}, ConfigError, "onnxruntime-training has no optimizer 'lion'"),
        ("mlp_sgd", {"optimizer": Optimizer("sgd", {"momentum": 0.9})}, ConfigError, "sgd has momentum = 0.9"),
        ("mlp_sgd", {"optimizer": Optimizer("sgd", weight_decay=0.1)}, ConfigError, "sgd has weight_decay = 0.1"),
        ("mlp_sgd", {"optimizer": Optimizer("adamw", {"beta": 0.9})}, ConfigError, "no option 'beta'.*beta1"),
        ("convnet_sgd", {"selection": choose("5.weigth")}, SelectionError, "Did you mean '5.weight'"),
        ("mlp_sgd", {"loss": Loss("l1", "logits")}, GradientError, "the losses cross_entropy and mse, not 'l1'"),
        ("mlp_sgd", {"loss": Loss("model", "logits")}, GradientError, "cross_entropy and mse, not 'model'"),
        (
            "mlp_sgd",
            {"loss": Loss("cross_entropy", "logits", label_smoothing=0.1)},
            GradientError,
            "without class_weights and label_smoothing",
        ),
        (
            "mlp_sgd",
            {"selection": replace(choose(*CASES["mlp_sgd"].trainable), parameter_groups=(ParameterGroup("a", 0.1),))},
            ConfigError,
            "one learning rate and one decay for all parameters",
        ),
        ("mlp_sgd", {"loss": Loss("mse", "scores")}, ModelError, "no output 'scores'"),
    ],
)
def test_refused_options(
    case: str, changes: dict[str, object], error: type[OnnxftError], words: str, tmp_path: Path
) -> None:
    python = script(tmp_path / "python", "exit 9")
    with pytest.raises(error, match=words):
        generate_case(CASES[case], tmp_path / "out", python=python, **changes)


def test_cross_entropy_takes_only_rows_of_logits(tmp_path: Path) -> None:
    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        y = op.Unsqueeze(op.Mul(x, w), [2])
        y.shape = ir.Shape([BATCH, 4, 1])
        return y

    with pytest.raises(GradientError, match=r"'logits' of shape \['batch', 4, 1\].*logits \(batch, classes\)"):
        generate_forward(forward_of(build), tmp_path / "out", python=script(tmp_path / "python", "exit 9"))


# ----- the environment and the worker -----


def test_without_an_environment_the_message_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(ort_training, "_PACKAGES", ("no-such-package",))
    with pytest.raises(ProviderError) as caught:
        find_python()
    for words in ("python3.11 -m venv ort-training", "pip install 'onnxft[ort-training]'", PYTHON_VARIABLE):
        assert words in str(caught.value)


@needs_sh
def test_the_argument_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (script(tmp_path / name, "exit 0") for name in ("first", "second"))
    monkeypatch.setenv(PYTHON_VARIABLE, second)
    assert (find_python(first), find_python()) == (first, second)
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ProviderError, match=f"no executable '.*none' .{PYTHON_VARIABLE}."):
        find_python()


@needs_sh
@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("kill -SEGV $$", ProviderError, "was ended by SIGSEGV.*native generator"),
        ("echo first >&2; echo ModuleNotFoundError: json >&2; exit 3", ProviderError, "status 3: ModuleNotFoundError"),
        ("exit 0", ProviderError, "failed with status 0: no message"),
    ],
)
def test_a_crash_of_the_worker_is_a_message(body: str, error: type[OnnxftError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words) as caught:
        generate_case(CASES["mlp_sgd"], tmp_path / "out", python=script(tmp_path / "python", body))
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["python"]


def test_an_interpreter_without_the_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot generate: onnxruntime-training cannot be imported .*-m venv"):
        generate_case(CASES["mlp_sgd"], tmp_path / "out", python=sys.executable)
    assert not list(tmp_path.iterdir())


def test_an_onnx_that_stamps_an_unreadable_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("training", "training.artifacts", "training.onnxblock"):
        monkeypatch.setitem(sys.modules, f"onnxruntime.{name}", ModuleType(name))
    monkeypatch.setattr(onnx, "IR_VERSION", 11)
    with pytest.raises(
        ort_training_worker.EnvironmentFaultError, match=r"stamps IR version 11 .*at most 10.*onnx<1\.18"
    ):
        ort_training_worker.generate({})


@pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set: no worker to run")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda op, x, w: op.Atan(op.Mul(x, w)), r"no gradient for 'Atan' \(node '.+'\)\. Freeze"),
        (lambda op, x, w: op.LayerNormalization(x, w, axis=-1), "differentiate the model: a node lacks an optional"),
    ],
)
def test_an_operator_without_gradient_is_named_by_the_real_worker(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value], words: str, tmp_path: Path
) -> None:
    with pytest.raises(GradientError, match=words) as caught:
        generate_forward(forward_of(build), tmp_path / "out")
    assert not any(words in str(caught.value) for words in ("onnxruntime_src", "\n", "nullptr", "Defs"))


@needs_sh
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            {"error": "environment", "reason": "onnx 1.18.0 stamps IR version 11"},
            ProviderError,
            "cannot generate: onnx 1.18.0 stamps IR version 11. Make its environment",
        ),
        (
            {
                "error": "generation",
                "reason": "RuntimeError: /src/registry.cc:29 GradientDef GetGradientForOp(Graph&) builder != nullptr "
                "was false. The gradient builder has not been registered: Atan for node my/atan\n",
            },
            GradientError,
            "onnxruntime-training has no gradient for 'Atan' (node 'my/atan'). Freeze what lies before it, or use the "
            "native generator.",
        ),
        (
            {
                "error": "generation",
                "reason": "RuntimeError: /src/base.h:123 ArgDef GradientBuilderBase::O(size_t) const i < "
                "node_->OutputDefs().size() was false. \n",
            },
            GradientError,
            "onnxruntime-training cannot differentiate the model: a node lacks an optional input or output",
        ),
        (
            {"error": "generation", "reason": "IndexError: list index out of range"},
            GradientError,
            "onnxruntime-training cannot differentiate the model: IndexError: list index out of range. Freeze",
        ),
    ],
)
def test_what_the_worker_says_is_explained(
    answer: dict[str, str], error: type[OnnxftError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    python = script(tmp_path / "python", f'cp "{tmp_path}/answer.json" "$4"')
    with pytest.raises(error) as caught:
        generate_case(CASES["mlp_sgd"], tmp_path / "out", python=python)
    assert message in str(caught.value)
    assert not any(words in str(caught.value) for words in ("/src/", "\n", "nullptr"))


@needs_sh
def test_request_and_manifest_say_the_same(tmp_path: Path) -> None:
    body = f"""cp "$3" "{tmp_path}/request.json"
cp "$(dirname "$3")/forward.onnx" "{tmp_path}/forward.onnx"
cd "$(sed 's/.*"directory": "\\([^"]*\\)".*/\\1/' "$3")"
for file in training_model.onnx eval_model.onnx optimizer_model.onnx checkpoint; do echo > $file; done
echo '{{"versions": {{"onnxruntime-training": "1.19.2"}}}}' > "$4"
"""
    selection = Selection(HEAD, dict.fromkeys(HEAD, "all"), {})
    python, directory = script(tmp_path / "python", body), tmp_path / "out"
    written = generate_case(CASES["convnet_adamw"], directory, python=python, selection=selection)
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["trainable"] == list(HEAD)
    assert request["frozen"] == ["0.bias"]
    assert request["optimizer"] == {"kind": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    assert request["loss"] == {"kind": "cross_entropy", "output": "logits", "labels": "labels"}
    assert request["outputs"] == ["logits"]
    assert onnx.load(tmp_path / "forward.onnx").ir_version <= 10
    manifest = Manifest.load(directory)
    assert manifest == written
    assert set(manifest.graphs) == {"ort_training", "ort_eval", "ort_optimizer", "ort_checkpoint", "infer"}
    assert [(p.name, p.shape, p.group, p.inference is None) for p in manifest.parameters] == [
        ("0.weight", (4, 2, 3, 3), "all", False),
        ("5.weight", (3, 24), "all", False),
        ("5.bias", (3,), "all", False),
    ]
    assert (manifest.generator, manifest.batch_size) == ("ort-training", 6)
    assert manifest.frozen_parameters == 4 + 4 + 4
    assert manifest.versions["onnxruntime-training"] == "1.19.2"
    assert [(p.name, p.role, p.dtype, p.shape) for p in manifest.graph("ort_training").inputs] == [
        ("x", "input", "float32", (BATCH, 2, 4, 6)),
        ("labels", "label", "int64", (BATCH,)),
    ]
    assert [(p.name, p.shape) for p in manifest.graph("ort_eval").named("output", "outputs")] == [
        ("logits", (BATCH, 3))
    ]
    assert set(manifest.files) == {file.name for file in directory.iterdir()} - {"manifest.json"}


def test_labels_of_mse_have_the_shape_of_the_output() -> None:
    assert ort_training._label(make_forward(CASES["mlp_mse"]).train, Loss("mse", "logits")) == (
        Port("labels", "label", "float32", (BATCH, 3))
    )
