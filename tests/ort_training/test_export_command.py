"""`onnxft export --generator ort-training` and what `onnxft inspect` says of its artifacts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxft.cli.export import export
from onnxft.cli.inspect import inspect
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.manifest_file import read_manifest
from onnxft.memory import size_text
from onnxft.ort_training_environment import PYTHON_VARIABLE

MODELS = Path(__file__).parent.parent / "models.py"
INTERFACES = "For onnxruntime-training's own interfaces"
needs_environment = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} is not set")


def exported(directory: Path, model: str, *options: str) -> Manifest:
    arguments = [f"{MODELS}:{model}", "--out", str(directory), *options]
    assert CliRunner().invoke(export, arguments, catch_exceptions=False).exit_code == 0
    return read_manifest(directory)


def shown(directory: Path) -> list[str]:
    """Lines of the output of inspect, runs of spaces as one."""
    result = CliRunner().invoke(inspect, [str(directory)], catch_exceptions=False)
    assert result.exit_code == 0
    return [" ".join(line.split()) for line in result.output.splitlines()]


@needs_environment
@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            [],
            [
                "Optimizer adamw, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01",
                f"{INTERFACES} (onnxft's own loss, rows have weights; arrays in this order):",
                "TrainStep: x, random.0, random.1, labels, sample_weights, normalizer → loss, loss_sum, weight_sum, "
                "metric.accuracy",
                "EvalStep: x, labels, sample_weights → loss, loss_sum, weight_sum, metric.accuracy, output",
            ],
        ),
        (
            ["--standalone", "--optimizer", "sgd", "--optimizer-option", "max_norm=0.5"],
            [
                "Optimizer sgd, momentum=0, nesterov=0, max_norm=0.5, weight_decay=0",
                f"{INTERFACES} (standalone, the loss is the mean over a batch; arrays in this order):",
                "TrainStep: x, labels → loss, output",
                "EvalStep: x, labels → loss, output",
                "The optimizer clips all gradients together at the norm 0.5.",
            ],
        ),
        (
            ["--additional-output", "output"],
            ["EvalStep: x, labels, sample_weights → loss, loss_sum, weight_sum, metric.accuracy, output"],
        ),
    ],
    ids=["default", "standalone", "additional output"],
)
def test_both_forms_of_a_model_with_dropout(options: list[str], lines: list[str], tmp_path: Path) -> None:
    manifest = exported(tmp_path / "out", "dropped", "--generator", "ort-training", *options)
    found = shown(tmp_path / "out")
    for line in lines:
        assert line in found
    random = [line for line in found if line.startswith("The runtime draws for itself")]
    assert (len(manifest.runtime_random), len(random)) == ((2, 1) if "--standalone" in options else (0, 0))
    state = 0 if manifest.optimizer.kind == "sgd" else 2 * 4 * manifest.num_trainable
    assert any(f"optimizer state {size_text(state)}," in line for line in found)
    assert "Activations come on top." in found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--standalone"], "standalone is a form of the 'ort-training' generator"),
        (["--additional-output", "output"], r"additional_outputs \(output\) are for the 'ort-training' generator"),
        (["--optimizer-option", "max_norm=1"], "max_norm fixes the clipping .* onnxft train --clip-norm"),
        (["--python", "python3"], "'native' needs none"),
        (
            ["--generator", "ort-training", "--optimizer-option", "max_norm=0"],
            "'max_norm' of optimizer 'adamw' is 0.0; it must be finite and above 0",
        ),
        (
            ["--generator", "ort-training", "--optimizer", "lion", "--optimizer-option", "max_norm=1"],
            "optimizer 'lion' has no option 'max_norm'",
        ),
        (
            ["--generator", "ort-training", "--additional-output", "outputs"],
            "no value 'outputs'.*Did you mean 'output'",
        ),
    ],
)
def test_options_of_the_other_generator_are_refused(options: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        exported(tmp_path / "out", "mlp", *options)
    assert not list(tmp_path.iterdir())
