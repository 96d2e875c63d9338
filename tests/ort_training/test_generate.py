"""Generating an artifact: options that are refused, what the worker is asked, what it says, and the manifest."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from ort_training_models import ADAMW, CASES, CROSS_ENTROPY, HEAD, Case, choose, make_forward
from test_lowering import forward_of

from onnxft.errors import ConfigError, GradientError, ModelError, OnnxftError, ProviderError, SelectionError
from onnxft.generators.ort_training import worker
from onnxft.generators.ort_training.generate import generate
from onnxft.graph.forward import Forward
from onnxft.manifest import BATCH, Loss, Manifest, Optimizer, ParameterGroup, Port
from onnxft.manifest_file import read_manifest
from onnxft.step.batch_norm import BatchNorm
from onnxft.step.select import Selection

LAYER = BatchNorm("bn", "1.running_mean", "1.running_var", (BATCH, 4, 6), 0.1)
needs_sh = pytest.mark.skipif(os.name == "nt", reason="the stand-in for an interpreter is a shell script")


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


# ----- options -----


@pytest.mark.parametrize(
    ("case", "changes", "error", "words"),
    [
        ("mlp_sgd", {"optimizer": Optimizer("lion")}, ConfigError, "onnxruntime-training has no optimizer 'lion'"),
        ("mlp_sgd", {"optimizer": Optimizer("sgd", {"momentum": 0.9})}, ConfigError, "sgd has momentum = 0.9"),
        ("mlp_sgd", {"optimizer": Optimizer("sgd", weight_decay=0.1)}, ConfigError, "sgd has weight_decay = 0.1"),
        ("mlp_sgd", {"optimizer": Optimizer("adamw", {"beta": 0.9})}, ConfigError, "no option 'beta'.*beta1"),
        ("convnet_sgd", {"selection": choose("5.weigth")}, SelectionError, "Did you mean '5.weight'"),
        ("mlp_sgd", {"additional_outputs": ["logit"]}, ConfigError, "no value 'logit' .*Did you mean 'logits'"),
        (
            "mlp_sgd",
            {"standalone": True, "loss": Loss("huber", "logits")},
            ConfigError,
            "cross_entropy, mse, l1, bce_with_logits, or one that the model computes .model., not huber. Leave --stand",
        ),
        (
            "mlp_sgd",
            {"standalone": True, "loss": Loss("cross_entropy", "logits", label_smoothing=0.1)},
            ConfigError,
            "cross_entropy of onnxruntime-training has no label_smoothing .here 0.1.*Leave that option or --standalone",
        ),
        (
            "mlp_sgd",
            {"standalone": True, "loss": Loss("cross_entropy", "logits", shift=1)},
            ConfigError,
            "cross_entropy of onnxruntime-training has no shift .here 1.",
        ),
        ("mlp_sgd", {"standalone": True, "loss": Loss("mse", "logit")}, ModelError, "Did you mean 'logits'"),
        ("convnet_sgd", {"selection": replace(choose(*HEAD), batch_norms=(LAYER,))}, ConfigError, "matches 'bn'"),
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


def test_a_parameter_that_does_not_reach_the_loss_is_named(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "exit 9")
    with pytest.raises(SelectionError, match="'w' does not reach the output 'logits' of the loss"):
        generate_forward(forward_of(lambda op, x, w: op.Relu(x)), tmp_path / "out", python=python)


# ----- the environment and the worker -----


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
    with pytest.raises(ProviderError, match=r"cannot generate: .* cannot be imported .*onnxft setup ort-training"):
        generate_case(CASES["mlp_sgd"], tmp_path / "out", python=sys.executable)
    assert not list(tmp_path.iterdir())


def test_an_onnx_that_stamps_an_unreadable_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("training", "training.artifacts", "training.onnxblock"):
        monkeypatch.setitem(sys.modules, f"onnxruntime.{name}", ModuleType(name))
    monkeypatch.setattr(onnx, "IR_VERSION", 11)
    with pytest.raises(worker.EnvironmentFaultError, match=r"stamps IR version 11 .*at most 10.*onnx<1\.18"):
        worker.generate({})


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


REQUEST = """cp "$3" "{to}/request.json"
cp "$(dirname "$3")/forward.onnx" "{to}/forward.onnx"
cd "$(sed 's/.*"directory": "\\([^"]*\\)".*/\\1/' "$3")"
for file in training_model.onnx optimizer_model.onnx checkpoint nominal_checkpoint; do echo > $file; done
echo '{{"versions": {{"onnxruntime-training": "1.19.2"}}, "parameters": {parameters}}}' > "$4"
"""
"""A worker that keeps what it is asked, and writes empty files."""


def keeping(folder: Path, *parameters: str) -> str:
    return script(folder / "python", REQUEST.format(to=folder, parameters=json.dumps(parameters)))


@needs_sh
def test_request_and_manifest_say_the_same(tmp_path: Path) -> None:
    selection = Selection(HEAD, dict.fromkeys(HEAD, "all"), {})
    python, directory = keeping(tmp_path, *HEAD, "0.bias"), tmp_path / "out"
    written = generate_case(CASES["convnet_adamw"], directory, python=python, selection=selection)
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["trainable"] == list(HEAD)
    assert request["frozen"] == ["0.bias"]
    assert request["optimizer"] == {
        "kind": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "max_norm": None,
    }  # fmt: skip
    asked = onnx.load(tmp_path / "forward.onnx")
    assert asked.ir_version <= 10
    assert [t.name for t in asked.graph.initializer][-4:] == [*HEAD, "0.bias"], "their order is that of the vector"
    manifest = read_manifest(directory)
    assert manifest == written
    assert set(manifest.graphs) == {
        "ort_training", "ort_eval", "ort_optimizer", "ort_checkpoint", "ort_nominal_checkpoint", "infer",
    }  # fmt: skip
    assert [(p.name, p.shape, p.group, p.inference is None) for p in manifest.parameters] == [
        ("0.weight", (4, 2, 3, 3), "all", False),
        ("5.weight", (3, 24), "all", False),
        ("5.bias", (3,), "all", False),
    ]
    assert (manifest.generator, manifest.batch_size) == ("ort-training", 6)
    assert manifest.frozen_parameters == 4 + 4 + 4
    assert manifest.versions["onnxruntime-training"] == "1.19.2"
    assert set(manifest.files) == {file.name for file in directory.iterdir()} - {"manifest.json"}
    evaluation = onnx.load(directory / "eval_model.onnx").graph
    ports = manifest.graph("ort_eval")
    assert [v.name for v in evaluation.input] == [*(p.name for p in ports.inputs), *HEAD, "0.bias"]
    assert [v.name for v in evaluation.output] == [p.name for p in ports.outputs]


X, LABELS = ("x", "input", (BATCH, 5)), ("labels", "label", (BATCH,))
WEIGHTS, NORMALIZER = ("sample_weights", "sample_weight", (BATCH,)), ("normalizer", "normalizer", ())
MASK = ("random.0", "random", (BATCH, 7))
SUMS = [(name, role, ()) for name, role in (("loss_sum", "loss_sum"), ("weight_sum", "weight_sum"))]
ACCURACY, LOGITS = ("metric.accuracy", "metric", ()), ("logits", "output", (BATCH, 3))
LOSS, HIDDEN = ("loss", "loss", ()), ("hidden", "output", (BATCH, 7))


@needs_sh
@pytest.mark.parametrize(
    ("options", "inputs", "outputs", "evaluated"),
    [
        ({}, [X, MASK, LABELS, WEIGHTS, NORMALIZER], [LOSS, *SUMS, ACCURACY], [LOSS, *SUMS, ACCURACY, LOGITS]),
        ({"standalone": True}, [X, LABELS], [LOSS, LOGITS], [LOSS, LOGITS]),
        (
            {"additional_outputs": ["logits", "hidden"]},
            [X, MASK, LABELS, WEIGHTS, NORMALIZER],
            [LOSS, *SUMS, ACCURACY, LOGITS, HIDDEN],
            [LOSS, *SUMS, ACCURACY, LOGITS, HIDDEN],
        ),
        (
            {"standalone": True, "additional_outputs": ["hidden", "logits"]},
            [X, LABELS],
            [LOSS, LOGITS, HIDDEN],
            [LOSS, LOGITS, HIDDEN],
        ),
    ],
    ids=["default", "standalone", "default, additional", "standalone, additional"],
)
def test_ports_of_both_forms(
    options: dict[str, object], inputs: list[object], outputs: list[object], evaluated: list[object], tmp_path: Path
) -> None:
    forward = make_forward(CASES["dropout"])
    for model in (forward.train, forward.infer):
        next(node for node in model.graph if node.op_type == "Relu").outputs[0].name = "hidden"
    chosen = choose(*CASES["dropout"].trainable)
    python = keeping(tmp_path, *chosen.trainable, "0.bias", "3.bias")
    manifest = generate_forward(forward, tmp_path / "out", python=python, selection=chosen, **options)

    def ports(ports: tuple[Port, ...]) -> list[object]:
        return [(p.name, p.role, p.shape) for p in ports]

    training, evaluation = manifest.graph("ort_training"), manifest.graph("ort_eval")
    assert (ports(training.inputs), ports(training.outputs)) == (inputs, outputs)
    assert ports(evaluation.outputs) == evaluated
    assert ports(evaluation.inputs) == [p for p in inputs if p not in (MASK, NORMALIZER)]
    asked = onnx.load(tmp_path / "forward.onnx").graph
    assert [v.name for v in asked.output] == [p.name for p in training.outputs]
    assert [v.name for v in asked.input] == [p.name for p in training.inputs]


def test_a_file_temp_onnx_of_the_working_directory_is_left_alone(
    ort_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-training writes its model under that name, and removes it."""
    monkeypatch.chdir(tmp_path)
    Path("temp.onnx").write_text("somebody's own")
    generate_case(CASES["mlp_sgd"], Path("made"), python=ort_python)
    assert Path("temp.onnx").read_text() == "somebody's own"
    assert read_manifest(Path("made")).parameters
