from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import onnxft
from onnxft.api import Plan, plan
from onnxft.errors import ArtifactError, ConfigError, GradientError, ModelError, OnnxftError
from onnxft.exporters.autograd import look
from onnxft.exporters.pytorch import export_module
from onnxft.graph.normalize import normalize
from onnxft.graph.shapes import dims
from onnxft.manifest import BATCH
from onnxft.manifest_file import read_manifest


class TwoInputs(nn.Module):
    """Reads an argument called `labels`, has a frozen branch in another mode and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(3, 5)
        self.drop = nn.Dropout(0.5)
        self.drop.eval()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.norm(x))) - labels


EXAMPLE = (torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 5))


def snapshot(module: nn.Module) -> tuple[Any, ...]:
    modes = {name: m.training for name, m in module.named_modules()}
    values = {name: t.detach().clone() for name, t in module.state_dict().items()}
    return modes, values, {name: (p.requires_grad, p.grad, id(p)) for name, p in module.named_parameters()}


def assert_untouched(module: nn.Module, before: tuple[Any, ...]) -> None:
    modes, values, parameters = snapshot(module)
    assert modes == before[0]
    assert parameters == before[2]
    assert values.keys() == before[1].keys()
    for name, value in values.items():
        assert torch.equal(value, before[1][name]), name


def test_an_input_named_labels_is_renamed_with_a_note() -> None:
    forward = export_module(TwoInputs(), EXAMPLE, dropout=False)
    assert forward.inputs == ("x", "labels_input")
    assert [v.name for v in forward.train.graph.inputs] == ["x", "labels_input"]
    assert forward.notes == ("the model input 'labels' is called 'labels_input' here",)


@pytest.mark.parametrize("name", ["labels", "step"])
def test_a_parameter_with_the_name_of_a_training_input_is_an_error(name: str) -> None:
    module = nn.Linear(7, 3)
    module.register_parameter(name, nn.Parameter(torch.ones(3)))
    with pytest.raises(ModelError, match=f"'{name}' has the name of an input of training graphs"):
        export_module(module, X)


def test_inputs_by_name_may_come_in_any_order() -> None:
    forward = export_module(TwoInputs(), {"labels": EXAMPLE[1], "x": EXAMPLE[0]}, dropout=False)
    shapes = {v.name: dims(v) for v in forward.infer.graph.inputs}
    assert shapes == {"x": (BATCH, 3), "labels_input": (BATCH, 5)}


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_it_was(training: bool) -> None:
    module = TwoInputs()
    module.norm.train(training)
    before = snapshot(module)
    export_module(module, EXAMPLE)
    assert_untouched(module, before)


class Broken(TwoInputs):
    """Cannot be traced: the result depends on values."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(x, labels) if float(x.sum()) > 0 else labels


def test_the_module_is_left_as_it_was_when_the_export_fails() -> None:
    module = Broken()
    before = snapshot(module)
    with pytest.raises(ModelError, match="torch cannot export the model"):
        export_module(module, EXAMPLE)
    assert_untouched(module, before)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_any_number_of_example_rows_leaves_the_batch_symbolic(rows: int) -> None:
    forward = export_module(nn.Linear(7, 3), torch.randn(rows, 7))
    assert forward.example_rows == rows
    for model in (forward.infer, forward.train):
        assert dims(model.graph.inputs[0]) == (BATCH, 7)
        assert dims(model.graph.outputs[0]) == (BATCH, 3)


class BakedMean(nn.Module):
    """Divides by the number of rows of the example, which torch writes as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 3)
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y / (4.0 if torch.compiler.is_exporting() else float(x.shape[0]))


class BakedRows(BakedMean):
    """Only takes the number of rows of its example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).reshape(4, 3)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (BakedMean(), "output 'output' differs from torch by"),
        (BakedRows(), "its first dimension must be the symbolic batch"),
    ],
)
def test_a_batch_size_baked_into_the_graph_is_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(ModelError) as err:
        export_module(module, torch.randn(4, 7, generator=torch.Generator().manual_seed(2)))
    assert words in str(err.value)


class TwoOutputs(nn.Module):
    """A mapping of outputs, as Hugging Face models return."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.fc(x)
        return {"logits": y, "probabilities": torch.softmax(y, 1)}


X = torch.randn(4, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("names", "expected"), [(None, ("output_0", "output_1")), (["scores", "p"], ("scores", "p"))])
def test_outputs_have_the_names_that_were_asked_for(names: list[str] | None, expected: tuple[str, ...]) -> None:
    assert export_module(TwoOutputs(), X, output_names=names).outputs == expected


@pytest.mark.parametrize(
    ("module", "inputs", "options", "words"),
    [
        (42, X, {}, "must be a torch.nn.Module, not int"),
        (nn.Linear(7, 3), None, {}, "example inputs must be tensors"),
        (nn.Linear(7, 3), (), {}, "example inputs must be tensors"),
        (nn.Linear(7, 3), "x", {}, "example inputs must be tensors"),
        (nn.Linear(7, 3), (np.zeros((4, 7)),), {}, "example input 'input' must be a tensor"),
        (nn.Linear(7, 3), torch.tensor(1.0), {}, "example input 'input' must be a tensor with the batch"),
        (nn.Linear(7, 3), X[:0], {}, "example input 'input' must be a tensor with the batch"),
        (nn.Linear(7, 3), (X, X), {}, "forward takes 1 inputs (input), 2 were given"),
        (
            TwoInputs(),
            (EXAMPLE[0], EXAMPLE[1][:3]),
            {},
            "equally many rows, the batch first; here {'x': 4, 'labels': 3}",
        ),
        (nn.Linear(7, 3), {"inputs": X}, {}, "forward has no input 'inputs'. Did you mean 'input'?"),
        (nn.Linear(7, 3), X, {"input_names": ["a", "b"]}, "input_names has 2 names for 1 inputs"),
        (TwoInputs(), EXAMPLE, {"input_names": ["a", "a"]}, "the input name 'a' is also"),
        (TwoOutputs(), X, {"output_names": ["a"]}, "output_names has 1 names for 2 outputs"),
        (TwoOutputs(), X, {"output_names": ["a", "a"]}, "the output name 'a' is also that of"),
        (nn.Linear(7, 3), X, {"output_names": ["loss_sum"]}, "'loss_sum' is also that of"),
        (nn.Linear(7, 3), X, {"output_names": ["weight"]}, "'weight' is also that of an input, a parameter"),
        (nn.Linear(7, 3), X, {"input_names": ["weight"]}, "the input name 'weight' is also that of a parameter"),
    ],
)
def test_what_cannot_be_exported_is_an_error(module: Any, inputs: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as err:
        export_module(module, inputs, **options)
    assert words in str(err.value)


def test_a_missing_rule_leaves_no_directory_behind(tmp_path: Path) -> None:
    class Cumulative(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(super().forward(x).reshape(-1, 2, 2)).reshape(-1, 1) * super().forward(x)

    with pytest.raises(GradientError, match="no rule for 'Det'"):
        onnxft.export(Cumulative(7, 4), X, tmp_path / "new" / "artifact")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": "hinge"}, ModelError, "unknown loss 'hinge'"),
        ({"optimizer": "adamv"}, ConfigError, "unknown optimizer 'adamv'"),
        ({"loss_output": "outputs"}, ConfigError, "no output 'outputs'. Did you mean 'output'?"),
        ({"classes": ["a", "b"]}, ConfigError, "2 class names were given, the model has 3 classes"),
    ],
)
def test_wrong_choices_are_errors(options: dict[str, Any], error: type[OnnxftError], words: str) -> None:
    with pytest.raises(error) as err:
        plan(nn.Linear(7, 3), X, **options)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generator": "natif"}, "unknown generator 'natif'. Did you mean 'native'?"),
        ({"python": "python3"}, "'native' needs none"),
    ],
)
def test_wrong_arguments_write_nothing(
    options: dict[str, Any], words: str, planned: Callable[..., Plan], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as err:
        planned("mlp").write(tmp_path / "artifact", **{"batch_size": 3, **options})
    assert words in str(err.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_size_of_0_is_not_that_of_the_example(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        onnxft.export(nn.Linear(7, 3), X, tmp_path / "artifact", batch_size=0)


def test_a_new_export_replaces_the_old_artifact(tmp_path: Path) -> None:
    place = tmp_path / "artifact"
    onnxft.export(nn.Linear(7, 3), X, place, batch_size=2)
    (place / "left_over.onnx").write_bytes(b"old")
    onnxft.export(nn.Linear(7, 5), X, place, classes=list("abcde"), preprocessing={"mean": [0.5]})
    manifest = read_manifest(place)
    assert (manifest.batch_size, manifest.loss.num_classes) == (4, 5)
    assert (manifest.classes, manifest.preprocessing) == (tuple("abcde"), {"mean": [0.5]})
    assert {p.name for p in place.iterdir()} == {"manifest.json", *manifest.files}
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_no_artifact_is_not_replaced(kind: str, planned: Callable[..., Plan], tmp_path: Path) -> None:
    place = tmp_path / "photos"
    precious = place / "1.png" if kind == "directory" else place
    precious.parent.mkdir(exist_ok=True)
    precious.write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="it would be deleted"):
        planned("mlp").write(place, batch_size=3)
    assert precious.read_bytes() == b"mine"


def test_the_inference_model_keeps_names_and_numbers(exported: Any) -> None:
    module, _ = models.convnet()
    session = ort.InferenceSession(exported("convnet") / "infer.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    x = np.random.default_rng(4).standard_normal((3, 1, 24, 24)).astype(np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": x})[0], expected, rtol=1e-4, atol=1e-5)


def test_dropout_without_a_dropout_layer_is_kept_for_training() -> None:
    """torch's attention drops out by itself: no layer of it says so."""
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = torch.randn(3, 5, 8)
    forward = export_module(attention, (x, x, x))
    assert "Dropout" in {node.op_type for node in forward.train.graph}
    assert "Dropout" not in {node.op_type for node in forward.infer.graph}
    assert "Dropout" not in {node.op_type for node in export_module(attention, (x, x, x), dropout=False).train.graph}


def test_dimensions_that_inference_loses_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: ir.Model, *args: Any) -> None:
        normalize(model, *args)
        for node in model.graph:
            if node.op_type == "Tanh":
                node.outputs[0].shape = ir.Shape([None, None])

    monkeypatch.setattr("onnxft.exporters.pytorch.normalize", forgetful)
    forward = export_module(models.mlp()[0], models.mlp()[1])
    for model in (forward.train, forward.infer):
        assert [dims(n.outputs[0]) for n in model.graph if n.op_type == "Tanh"] == [(BATCH, 11)]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).masked_fill(torch.tensor([False, False, True]), float("-inf"))


def test_outputs_of_minus_infinity_are_compared() -> None:
    assert export_module(Masked(), torch.randn(3, 4)).outputs == ("output",)


class Cut(nn.Module):
    """A bias that is read without a gradient, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 3)
        self.shift = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            shift = self.shift * 2
        return self.fc(x) * self.scale + shift


def test_what_the_model_does_not_train_is_trained_only_where_a_pattern_names_it() -> None:
    made = plan(Cut(), X)
    assert made.selection.trainable == ("fc.weight", "fc.bias")
    assert "without a gradient (torch.no_grad or detach)" in made.selection.skipped["shift"]
    assert "requires_grad=False" in made.selection.skipped["scale"]
    assert plan(Cut(), X, trainable=["s*"]).selection.trainable == ("shift", "scale")


class Straight(torch.autograd.Function):
    """Rounding whose backward lets everything through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return dy


class Through(nn.Module):
    """A dense layer and what `cut` makes of its values."""

    def __init__(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.cut = nn.Linear(7, 3), cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y + self.cut(y)


def without_grad(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return y * 2


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda y: y.detach() * 2, "cuts gradients off intermediate values (Tensor.detach)"),
        (without_grad, "cuts gradients off intermediate values (torch.no_grad)"),
        (lambda y: Straight.apply(y), "gives Straight a backward of its own"),
        (torch.tanh, None),
    ],
)
def test_a_gradient_that_is_another_than_torchs_is_noted(cut: Any, words: str | None) -> None:
    seen = look(Through(cut).eval(), {"x": X})
    assert seen.reached == {"fc.weight", "fc.bias"}
    assert [words in note for note in seen.notes] == [True] if words else seen.notes == ()


def test_the_note_reaches_the_user() -> None:
    assert any("cuts gradients off" in note for note in plan(Through(torch.Tensor.detach), X).notes)
