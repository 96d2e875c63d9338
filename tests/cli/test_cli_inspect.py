from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import onnxft
from onnxft.cli.inspect import inspect
from onnxft.errors import ArtifactError, ModelError
from onnxft.grad.coverage import Coverage, coverage
from onnxft.grad.registry import without_rule
from onnxft.memory import size_text


def shown(*arguments: object) -> list[str]:
    """Lines of the output, runs of spaces as one."""
    result = CliRunner().invoke(inspect, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return [" ".join(line.split()) for line in result.output.splitlines()]


@pytest.mark.parametrize(
    ("model", "options", "lines"),
    [
        (
            "mlp",
            {},
            [
                "Artifact mlp (generator native, schema 1)",
                "Loss cross_entropy of 'output', 5 classes",
                "Optimizer adamw, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01",
                "Batch 16 rows",
                "fc1.weight 11 × 7 float32 default 77",
                "195 of 195 values are trained (100.0%).",
            ],
        ),
        (
            "twins",
            {"optimizer": "sgd", "batch_size": 5},
            [
                "Optimizer sgd, momentum=0, nesterov=0, weight_decay=0",
                "embed.weight = back.weight 6 × 7 float32 default 42",
            ],
        ),
        (
            "normed",
            {"train_batchnorm": ("bn1", "bn3")},
            ["BatchNorm layers that train their running statistics: bn1, bn3."],
        ),
    ],
)
def test_an_artifact(model: str, options: dict[str, object], lines: list[str], exported: Callable[..., Path]) -> None:
    found = shown(exported(model, **options))
    for line in lines:
        assert line in found
    assert {"eval", "gradients", "infer", "train", "update"} <= {line.split()[0] for line in found if line}
    assert any(line.startswith("total ") for line in found)


def test_the_memory_of_an_artifact_is_a_table_of_parts(exported: Callable[..., Path]) -> None:
    found = shown(exported("mlp"))
    at = found.index("Estimated memory of a training run on cpu, smaller batches accumulated:")
    assert found[at + 1] == "part 16 rows 8 rows 1 row"
    for line in (
        "trained parameters 780 B 780 B 780 B", "optimizer state 1.6 kB 1.6 kB 1.6 kB", "gradients 0 B 780 B 780 B",
        "new parameters and state 780 B 0 B 0 B",
    ):  # fmt: skip
        assert line in found[at:], line


@pytest.mark.filterwarnings("ignore")
def test_the_memory_of_both_kinds_of_graphs_is_told(tmp_path: Path) -> None:
    found = shown(onnxft.export(*models.adaptable(), tmp_path / "both", recompute=True, batch_size=6))
    title = "Estimated memory of a training run on cpu, smaller batches accumulated"
    at = [found.index(f"{title}{kind}:") for kind in ("", ", activations computed again")]
    assert at == sorted(at)
    for place in at:
        assert found[place + 1] == "part 6 rows 3 rows 1 row"
        assert any(line.startswith("activations ") for line in found[place:])
        assert any(line.startswith("total ") for line in found[place:])
    for role in ("train", "gradients"):  # a long name is cut off in a narrow terminal
        assert [line.split()[1][: len(role) + 3] for line in found if line.startswith(f"{role} {role}.")] == [
            f"{role}.on", f"{role}.re",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (98_240_000, "98.2 MB"), (3_210_000_000, "3.2 GB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Operators of every kind, one of them in a branch of an If, one in a function."""
    outputs = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "bcy"}
    branch = helper.make_graph([helper.make_node("Sinh", ["x"], ["b"])], "then", [], [outputs["b"]])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["c"])], "else", [], [outputs["c"]])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    double = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], opsets[:1]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Det", ["m"], ["d"]),
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Twice", ["h"], ["t"], domain="own"),
            helper.make_node("Gelu", ["t"], ["u"], domain="com.microsoft"),
            helper.make_node("FusedGelu", ["u"], ["g"], domain="com.microsoft"),
            helper.make_node("If", ["p"], ["y"], then_branch=branch, else_branch=other),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, [2, 2]),
            helper.make_tensor_value_info("p", TensorProto.BOOL, []),
        ],
        [outputs["y"]],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[double]), path)
    return path


def test_the_operators_of_a_model(model: Path) -> None:
    found = {c.op_type: c for c in coverage(model)}
    assert set(found) == {"Add", "Det", "FusedGelu", "Gelu", "If", "Relu", "Shape", "Sinh"}
    assert found["Relu"] == Coverage("Relu", "", 2, "rule")
    assert found["Add"] == Coverage("Add", "", 1, "rule")
    assert found["Det"] == Coverage("Det", "", 1, "not yet", without_rule()["Det"])
    assert found["Shape"] == Coverage("Shape", "", 1, "by nature", "its result is integers")
    assert found["Gelu"] == Coverage("Gelu", "com.microsoft", 1, "lowered")
    assert found["FusedGelu"] == Coverage("FusedGelu", "com.microsoft", 1, "other domain")


def test_inspecting_a_model(model: Path) -> None:
    found = shown(model)
    assert "Relu 2 has a rule" in found
    assert "Det 1 no rule yet its gradient needs the inverse" in found
    assert "Shape 1 no derivative its result is integers" in found
    assert "com.microsoft::Gelu 1 by others" in found
    assert "com.microsoft::FusedGelu 1 not ONNX" in found
    assert found[-1].startswith("Not covered: Det, ")


def test_inspecting_the_model_of_an_artifact(exported: Callable[..., Path]) -> None:
    found = shown(exported("convnet") / "infer.onnx")
    assert "Conv 4 has a rule" in found
    assert found[-1].endswith("of them covered.")


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("model.onnx", None, ModelError, "does not exist"),
        ("model.onnx", b"not a model", ModelError, "is not an ONNX model"),
        ("model.onnx", b"", ModelError, "is not an ONNX model"),
        ("model.pt", b"PK\x03\x04 and more", ModelError, "is not an ONNX model"),
        ("artifact", None, ArtifactError, "is not an artifact: the directory does not exist"),
        (".", None, ArtifactError, "is not an artifact: it holds no manifest.json"),
    ],
)
def test_what_cannot_be_inspected(
    name: str, content: bytes | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(inspect, [str(tmp_path / name)])
    assert isinstance(result.exception, error)
    assert words in str(result.exception)
