"""`onnxft export`, run as a user runs it: through `main`, which turns errors into messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnx_models import random, save

import onnxft
from onnxft.api import Plan
from onnxft.cli.export import export
from onnxft.cli.main import main
from onnxft.errors import ExitStatus
from onnxft.manifest import ParameterGroup
from onnxft.manifest_file import read_manifest
from onnxft.runtime.artifact import load_artifact

MODELS = Path(__file__).parent.parent / "models.py"
MLP = f"{MODELS}:mlp"


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def onnxft_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `onnxft ARGUMENTS` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["onnxft", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def exported_before(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """The export of MLP stands in for every export: what goes wrong around it is the point."""
    forward = planned("mlp").forward
    monkeypatch.setattr("onnxft.exporters.pytorch.export_module", lambda *args, **options: forward)


def test_export_writes_an_artifact_and_says_what_is_next(onnxft_command: Command, tmp_path: Path) -> None:
    done = onnxft_command(
        "export", MLP, "--train", "fc[23].*", "--freeze", "fc3.bias", "--batch-size", "6", "--optimizer", "sgd",
        "--optimizer-option", "momentum=0.9", "--weight-decay", "0.1", "--input-name", "features", "--no-dropout",
        "--output-name", "scores", *(x for c in "abcde" for x in ("--class", c)),
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "3 of 6 parameters are trained: 102 of 195 values (52.3%)." in done.out
    assert "Next: onnxft train artifacts/mlp --data" in done.out
    manifest = read_manifest(tmp_path / "artifacts" / "mlp")
    assert [p.name for p in manifest.parameters] == ["fc2.weight", "fc2.bias", "fc3.weight"]
    assert (manifest.batch_size, manifest.classes) == (6, tuple("abcde"))
    assert (manifest.optimizer.options, manifest.optimizer.weight_decay) == ({"momentum": 0.9, "nesterov": 0.0}, 0.1)
    assert [p.name for p in manifest.inputs] == ["features"]
    assert [p.name for p in manifest.graph("eval").named("output", "outputs")] == ["scores"]


def test_how_pictures_are_made_is_stored_and_checked(onnxft_command: Command, tmp_path: Path) -> None:
    digits = ("export", f"{MODELS}:digits", "--train", "*.bias")
    Path("c.yaml").write_text("preprocess: {mean: [0.5], std: 0.25, size: 28}", encoding="utf-8")
    done = onnxft_command(*digits, "--preprocess", "size=32", "--out", "a")
    assert done.code == ExitStatus.CONFIG
    assert "preprocess size is 32,32, the model takes pictures of 28,28 (height,width)" in done.err
    assert not (tmp_path / "a").exists()
    assert onnxft_command(*digits, "--config", "c.yaml", "--out", "a").code == 0
    assert read_manifest(tmp_path / "a").preprocessing == {"mean": [0.5], "std": [0.25], "size": [28, 28]}
    done = onnxft_command(*digits, "--config", "c.yaml", "--preprocess", "color=L", "--out", "b")
    assert read_manifest(tmp_path / "b").preprocessing == {"color": "L"}


def test_loss_options_and_groups_from_flags_and_file(onnxft_command: Command, tmp_path: Path) -> None:
    Path("c.yaml").write_text(
        "loss_options: {class_weights: [1, 2, 3, 4, 5], label_smoothing: 0.1}\nlr_factors: {fc1.*: 0.1}\n"
        "no_decay_norms: true\n",
        encoding="utf-8",
    )
    done = onnxft_command("export", MLP, "--config", "c.yaml", "--decay", "fc3.*=0.2", "--out", "a")
    assert (done.code, done.err) == (0, "")
    manifest = read_manifest(tmp_path / "a")
    assert (manifest.loss.class_weights, manifest.loss.label_smoothing) == ((1, 2, 3, 4, 5), 0.1)
    assert [p.group for p in manifest.parameters] == [
        "lr_0.1", "lr_0.1_no_decay", "default", "no_decay", "decay_0.2", "decay_0.2",
    ]  # fmt: skip
    assert manifest.parameter_group("lr_0.1_no_decay") == ParameterGroup("lr_0.1_no_decay", 0.1, 0.0)
    assert "Group decay_0.2: lr as given, weight decay 0.2 (2 parameters)." in done.out
    assert "train (lr_0.1)" in done.out
    shown = onnxft_command("inspect", "a")
    assert "Loss         cross_entropy of 'output', 5 classes, class_weights=1.0,2.0,3.0,4.0,5.0" in shown.out
    assert "Group        lr_0.1_no_decay: lr × 0.1, weight decay 0" in shown.out


@pytest.mark.usefixtures("exported_before")
@pytest.mark.parametrize(
    ("arguments", "loss"),
    [
        (["--loss", "bce_with_logits", "--loss-option", "pos_weight=2"], "bce_with_logits of 'output', 5 classes"),
        (["--loss", "huber", "--loss-option", "delta=0.5"], "huber of 'output', delta=0.5"),
        (["--loss", "l1"], "l1 of 'output'"),
        (["--loss", "kl_div"], "kl_div of 'output', 5 classes"),
    ],
)
def test_each_loss_can_be_exported(arguments: list[str], loss: str, onnxft_command: Command) -> None:
    done = onnxft_command("export", MLP, *arguments, "--out", "a")
    assert (done.code, done.err) == (0, "")
    assert loss in onnxft_command("inspect", "a").out


def test_a_dry_run_writes_nothing(onnxft_command: Command, tmp_path: Path) -> None:
    done = onnxft_command("export", MLP, "--train", "fc3.*", "--dry-run")
    assert done.code == 0
    assert "2 of 6 parameters are trained: 35 of 195 values" in done.out
    assert "Dry run: nothing was written." in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_method_shows_its_blocks_and_what_it_trains(onnxft_command: Command, tmp_path: Path) -> None:
    done = onnxft_command("export", f"{MODELS}:adaptable", "--method", "last:2", "--dry-run")
    assert done.code == ExitStatus.OK
    lines = [line.split() for line in done.out.splitlines()]
    assert ["layers.0", "4", "229", "-"] in lines
    assert ["layers.2", "4", "229", "train", "4"] in lines
    assert ["head", "2", "45", "train", "2"] in lines
    assert "10 of 22 parameters are trained: 503 of 1,048 values (48.0%)." in done.out
    assert list(tmp_path.iterdir()) == []


def test_lora_shows_its_adapters_and_that_the_head_stays(onnxft_command: Command) -> None:
    options = ["--lora-target", "layers.1.*", "--lora-alpha", "3", "--lora-dropout", "0.1", "--freeze", "layers.1.0.*"]
    done = onnxft_command("export", f"{MODELS}:adaptable", "--method", "lora:2", *options, "--dry-run")
    assert done.code == ExitStatus.OK
    lines = [line.split() for line in done.out.splitlines()]
    assert ["layers.1.2.weight", "8", "×", "13", "104", "adapter", "of", "rank", "2"] in lines
    assert ["layers.1", "4", "229", "adapters", "at", "1"] in lines
    assert "2 of 24 parameters are trained: 42 of 1,090 values (3.9%)." in done.out
    assert "LoRA of rank 2 at 1 layer, alpha 3, dropout 0.1" in done.out
    assert "the head (head.weight, head.bias) stays as it is; --method lora,head trains it too" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "last:9"], ExitStatus.MODEL, "last:9 asks for 9 blocks; found are 2 (fc1, fc2)"),
        (["--method", "loro:8"], ExitStatus.CONFIG, "unknown method 'loro'. Did you mean 'lora'?"),
        (["--method", "lora:8"], ExitStatus.MODEL, "the LoRA rank 8 is larger than a dimension of 'fc1.weight'"),
        (["--lora-alpha", "8"], ExitStatus.CONFIG, "lora_alpha belongs to the method lora"),
        (["--method", "lora:2", "--lora-target", "*.bias"], ExitStatus.MODEL, "matches no linear layer or convolution"),
        (["--method", "head", "--block", "fc9"], ExitStatus.MODEL, "the block 'fc9' matches no module"),
    ],
)
@pytest.mark.usefixtures("exported_before")
def test_a_method_that_does_not_fit_is_an_error(
    onnxft_command: Command, arguments: list[str], code: ExitStatus, words: str
) -> None:
    done = onnxft_command("export", MLP, "--out", "a", *arguments)
    assert (done.code, words in done.err) == (code, True), done.err


def test_a_file_gives_values_and_flags_override_them(onnxft_command: Command, tmp_path: Path) -> None:
    Path("c.yaml").write_text(
        "trainable: ['fc1.*']\nbatch-size: 9\noptimizer: sgd\noptimizer_options: [momentum=0.5]\n", encoding="utf-8"
    )
    done = onnxft_command("export", MLP, "--config", "c.yaml", "--batch-size", "3", "--train", "fc2.*", "--out", "a")
    assert (done.code, done.err) == (0, "")
    manifest = read_manifest(tmp_path / "a")
    assert (manifest.batch_size, manifest.optimizer.kind) == (3, "sgd")
    assert manifest.optimizer.options == {"momentum": 0.5, "nesterov": 0.0}
    assert [p.name for p in manifest.parameters] == ["fc2.weight", "fc2.bias"]


@pytest.mark.usefixtures("exported_before")
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("batchsize: 3", ExitStatus.CONFIG, "'c.yaml' has the unknown option 'batchsize'. Did you mean 'batch_size'?"),
        ("source: other.py:f", ExitStatus.CONFIG, "unknown option 'source'"),
        ("python: /bin/sh", ExitStatus.CONFIG, "unknown option 'python'"),
        ("config: d.yaml", ExitStatus.CONFIG, "unknown option 'config'"),
        ("- 1", ExitStatus.CONFIG, "must hold a mapping"),
        ("a: [", ExitStatus.CONFIG, "'c.yaml' is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", ExitStatus.CONFIG, "'c.yaml' is not YAML"),
        ("batch_size: many", ExitStatus.USAGE, "'many' is not a valid integer"),
        ("trainable: fc*", ExitStatus.USAGE, "Value must be an iterable"),
        ("batch_size: 0", ExitStatus.CONFIG, "batch_size is 0"),
    ],
)
def test_a_wrong_file_is_an_error(text: str, code: int, words: str, onnxft_command: Command, tmp_path: Path) -> None:
    Path("c.yaml").write_text(text, encoding="utf-8")
    done = onnxft_command("export", MLP, "--config", "c.yaml")
    assert done.code == code
    assert words in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.usefixtures("exported_before")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["exprot"], ExitStatus.USAGE, "no command 'exprot'. Did you mean 'export'?"),
        (["export"], ExitStatus.USAGE, "Missing argument 'SOURCE'"),
        (["export", MLP, "--batchsize", "3"], ExitStatus.USAGE, "--batch-size"),
        (["export", MLP, "--optimizer-option", "momentum"], ExitStatus.USAGE, "'momentum' is not of the form"),
        (["export", MLP, "--optimizer-option", "momentum=x"], ExitStatus.USAGE, "not of the form KEY=NUMBER"),
        (["export", MLP, "--config", "missing.yaml"], ExitStatus.USAGE, "'missing.yaml' does not exist"),
        (["export", "mlp"], ExitStatus.MODEL, "SOURCE 'mlp' is not of the form"),
        (["export", f"{MODELS}:mpl"], ExitStatus.MODEL, "has no function 'mpl'. Did you mean 'mlp'"),
        (["export", "missing.py:mlp"], ExitStatus.MODEL, "the file 'missing.py' does not exist"),
        (
            ["export", MLP, "--loss-option", "label_smoothing=1"], ExitStatus.CONFIG,
            "the loss option 'label_smoothing' is 1.0; it must be a number, at least 0 and below 1",
        ),
        (["export", MLP, "--loss-option", "class_weights=1,2"], ExitStatus.CONFIG, "has 2 numbers, the model has 5"),
        (["export", MLP, "--loss-option", "class_weights=1,x"], ExitStatus.USAGE, "not of the form KEY=NUMBER or"),
        (["export", MLP, "--loss", "mse", "--loss-option", "delta=1"], ExitStatus.CONFIG, "'mse' has no option"),
        (["export", MLP, "--loss", "model"], ExitStatus.MODEL, "'output' has the shape ['batch', 5]"),
        (["export", MLP, "--lr-factor", "fc4.*=0.1"], ExitStatus.MODEL, "'fc4.*' matches no trained parameter"),
        (["export", MLP, "--lr-factor", "fc1.*=-1"], ExitStatus.CONFIG, "the lr factor of 'fc1.*' is -1.0"),
        (["export", MLP, "--decay", "fc1.*"], ExitStatus.USAGE, "'fc1.*' is not of the form KEY=NUMBER"),
        (["export", MLP, "--loss", "hinge"], ExitStatus.MODEL, "unknown loss 'hinge'"),
        (["export", MLP, "--train", "fc4.*"], ExitStatus.MODEL, "'fc4.*' matches no parameter of 'mlp'"),
        (["export", MLP, "--freeze", "*"], ExitStatus.MODEL, "nothing is left to train"),
        (["export", MLP, "--preprocess", "mean"], ExitStatus.USAGE, "'mean' is not of the form KEY=VALUE"),
        (["export", MLP, "--preprocess", "men=1"], ExitStatus.CONFIG, "preprocess key 'men'. Did you mean 'mean'"),
        (["export", MLP, "--preprocess", "std=0"], ExitStatus.CONFIG, "preprocess std is '0'; it must not be 0"),
        (["export", MLP, "--optimizer", "adamv"], ExitStatus.CONFIG, "Did you mean 'adam' or 'adamw'?"),
        (["export", MLP, "--optimizer-option", "beta1=2"], ExitStatus.CONFIG, "'beta1' of optimizer 'adamw' is 2.0"),
        (["export", MLP, "--loss-output", "outptu"], ExitStatus.CONFIG, "no output 'outptu'. Did you mean 'output'?"),
        (["export", MLP, "--generator", "ort"], ExitStatus.CONFIG, "unknown generator 'ort'"),
        (["export", MLP, "--precision", "bf16"], ExitStatus.CONFIG, "in 'bf16'. Did you mean 'bfloat16'?"),
        (["export", MLP, "--precision", "float32"], ExitStatus.CONFIG, "Graphs in float32 are always there"),
        (
            ["export", MLP, "--generator", "ort-training", "--precision", "float16"], ExitStatus.CONFIG,
            "precision is for the generator 'native'; 'ort-training' computes in float32",
        ),
        (["export", MLP, "--frozen-precision", "int"], ExitStatus.CONFIG, "stored in 'int'. Did you mean 'int8'?"),
        (["export", MLP, "--frozen-precision", "int8"], ExitStatus.CONFIG, "'mlp' has no frozen weight to store in"),
        (
            ["export", MLP, "--generator", "ort-training", "--frozen-precision", "int8"], ExitStatus.CONFIG,
            "frozen weights in 'int8' are for the generator 'native'; 'ort-training' reads them in float32",
        ),
        (["export", MLP, "--class", "a"], ExitStatus.CONFIG, "1 class names were given, the model has 5 classes"),
        (["export", MLP, "--out", "."], ExitStatus.ARTIFACT, "cannot be replaced as a whole"),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_exit_code(
    arguments: list[str], code: int, words: str, onnxft_command: Command, tmp_path: Path
) -> None:
    done = onnxft_command(*arguments)
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx"], ExitStatus.MODEL, "the model file 'missing.onnx' does not exist"),
        (["net.onnx", "--dimension", "s"], ExitStatus.USAGE, "'s' is not of the form NAME=SIZE"),
        (["net.onnx"], ExitStatus.MODEL, "--dimension s=64"),
        (["net.onnx", "--dimension", "t=3"], ExitStatus.CONFIG, "no open dimension 't'"),
        (
            ["net.onnx", "--dimension", "s=3", "--train", "u", "--loss", "mse"],
            ExitStatus.MODEL,
            "'u' matches no parameter of 'net'",
        ),
        ([MLP, "--dimension", "s=3"], ExitStatus.CONFIG, "'mlp' has no open dimension 's'"),
    ],
)
@pytest.mark.usefixtures("exported_before")
def test_what_goes_wrong_with_a_file(
    arguments: list[str], code: int, words: str, onnxft_command: Command, tmp_path: Path
) -> None:
    save("g (float[N,s,3] x) => (float[N,s,2] y) { y = MatMul(x, w) }", tmp_path / "net.onnx", w=random(3, 2))
    done = onnxft_command("export", *arguments)
    assert done.code == code
    assert words in done.err
    assert not (tmp_path / "artifacts").exists()


def test_a_file_and_its_dimensions(onnxft_command: Command, tmp_path: Path) -> None:
    save("g (float[N,s,3] x) => (float[N,s,2] y) { y = MatMul(x, w) }", tmp_path / "net.onnx", w=random(3, 2))
    Path("c.yaml").write_text("dimensions: {s: 4}\nloss: mse\n", encoding="utf-8")
    done = onnxft_command("export", "net.onnx", "--config", "c.yaml")
    assert (done.code, done.err) == (0, "")
    assert read_manifest(tmp_path / "artifacts" / "net").dimensions == {"s": 4}


def test_an_operator_without_rule_ends_with_its_code(onnxft_command: Command, tmp_path: Path) -> None:
    source = tmp_path / "determinant.py"
    source.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return torch.linalg.det(super().forward(x).reshape(-1, 2, 2)).reshape(-1, 1) * super().forward(x)\n"
        "def make():\n"
        "    return Net(3, 4), (torch.ones(5, 3),)\n",
        encoding="utf-8",
    )
    done = onnxft_command("export", "determinant.py:make")
    assert done.code == ExitStatus.GRADIENT
    assert "no rule for 'Det'" in done.err
    assert not (tmp_path / "artifacts").exists()


def test_the_command_under_clicks_own_runner() -> None:
    shown = CliRunner().invoke(export, ["--help"])
    assert shown.exit_code == 0
    assert "--train GLOB" in shown.output
    assert "[default: adamw]" in shown.output


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, f"onnxft, version {onnxft.__version__}", ""),
        (["export", "nowhere:f"], ExitStatus.MODEL, "", "Error: module 'nowhere' cannot be imported"),
    ],
)
def test_the_process(arguments: list[str], code: int, out: str, err: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxft", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(MODELS.parent.parent)},
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout.startswith(out)
    assert done.stderr.startswith(err)


def test_batch_norm_layers_are_chosen_by_pattern(onnxft_command: Command) -> None:
    done = onnxft_command("export", f"{MODELS}:normed", "--dry-run", "--train-batchnorm", "bn[13]")
    assert done.code == ExitStatus.OK
    assert "BatchNorm layers that train their running statistics: bn1, bn3." in done.out
    done = onnxft_command("export", f"{MODELS}:normed", "--dry-run", "--train-batchnorm", "norm1")
    assert done.code == ExitStatus.MODEL
    assert "the pattern 'norm1' matches no BatchNorm layer. Known: 'bn1', 'bn2', 'bn3'." in done.err


def test_a_dimension_is_named_on_the_command_line(onnxft_command: Command, tmp_path: Path) -> None:
    done = onnxft_command("export", MLP, "--dynamic", "x:1=width", "--out", "mlp")
    assert done.code == ExitStatus.MODEL
    assert "the dimension 'width' of input 'x' became 7 in the export" in done.err


def test_fixed_and_dynamic_exclude_each_other(onnxft_command: Command) -> None:
    done = onnxft_command("export", MLP, "--fixed", "--dynamic", "x:1=width")
    assert done.code == ExitStatus.USAGE
    assert "exclude each other" in done.err


@pytest.mark.parametrize("given", ["x=width", "x:one=width", "x:1", ":1=width"])
def test_a_dimension_of_another_form_is_a_usage_error(onnxft_command: Command, given: str) -> None:
    done = onnxft_command("export", MLP, "--dynamic", given)
    assert done.code == ExitStatus.USAGE
    assert f"'{given}' is not of the form INPUT:AXIS=NAME" in done.err


def test_frozen_weights_in_fewer_bytes_are_told(onnxft_command: Command) -> None:
    done = onnxft_command("export", f"{MODELS}:digits", "--method", "head", "--frozen-precision", "int8", "--out", "a")
    assert (done.code, done.err) == (0, "")
    told = [" ".join(line.split()) for line in done.out.splitlines() if "frozen weights are stored in int8" in line]
    shown = " ".join(onnxft_command("inspect", "a").out.split())
    assert len(told) == 1 and told[0] in shown
    for words in ("; relative error of the weights ", " of the outputs on a random batch ", " in the mean."):
        assert words in told[0]


@pytest.mark.parametrize(
    ("arguments", "blocks"), [([], 0), (["--recompute"], 1), (["--recompute-blocks", "2"], 2)], ids=str
)
def test_recomputation_is_recorded_and_shown(arguments: list[str], blocks: int, onnxft_command: Command) -> None:
    assert onnxft_command("export", f"{MODELS}:adaptable", "--out", "made", *arguments).code == 0
    manifest = read_manifest(Path("made"))
    assert manifest.recompute == blocks
    roles = ("train", "gradients", "batch_gradients") if blocks else ()
    assert {name for name in manifest.files if "recomputed" in name} == {f"{role}.recomputed.onnx" for role in roles}
    shown = onnxft_command("inspect", "made").out
    words = {0: "", 1: "activations, 1 block at a time", 2: "activations, 2 blocks at a time"}[blocks]
    assert ("Recompute" in shown) == bool(blocks) and words in shown


def test_recomputation_is_of_the_native_generator(onnxft_command: Command) -> None:
    done = onnxft_command("export", f"{MODELS}:adaptable", "--recompute", "--generator", "ort-training")
    assert done.code == ExitStatus.CONFIG
    assert "recompute is for the generator 'native'" in done.err


@pytest.mark.usefixtures("exported_before")
def test_half_precision_has_files_beside_those_of_float32(onnxft_command: Command) -> None:
    plain, both = onnxft_command("export", MLP, "--out", "plain"), onnxft_command(
        "export", MLP, "--out", "both", "--precision", "float16", "--precision", "bfloat16"
    )  # fmt: skip
    assert (plain.code, both.code) == (0, 0)
    manifests = [read_manifest(Path(place)) for place in ("plain", "both")]
    assert manifests[0].half == {}
    added = {f"{role}.{precision}.onnx" for role in ("gradients", "eval") for precision in ("float16", "bfloat16")}
    assert set(manifests[1].files) - set(manifests[0].files) == added
    assert manifests[0].graphs == manifests[1].graphs
    shown = " ".join(onnxft_command("inspect", "both").out.split())
    assert shown.count(" float16 any ") == shown.count(" bfloat16 any ") == 2
    load_artifact(Path("both"))  # hashes, and what the graphs name
