from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxft.errors import ArtifactError, ConfigError
from onnxft.frozen_weights import FrozenWeights, RelativeError
from onnxft.manifest import (
    BATCH,
    Buffer,
    ByteRange,
    Distribution,
    GraphFile,
    Loss,
    Manifest,
    Optimizer,
    Parameter,
    ParameterGroup,
    Port,
)
from onnxft.manifest_file import check_manifest, manifest_json, parse_manifest, read_manifest
from onnxft.merge import LORA_A, LORA_B, Merge
from onnxft.step_work import Amount, StepWork

FULL = Manifest(
    name="net",
    generator="native",
    batch_size=4,
    graphs={
        "train": GraphFile(
            "train.onnx",
            (
                Port("x", "input", "float32", (BATCH, 3, "length")),
                Port("w", "parameter", "float32", (2, 3), parameter="w"),
                Port("random.0", "random", "float32", (BATCH,), distribution=Distribution("normal", low=1.0, high=2.0)),
                Port("bn.mean", "buffer", "float32", (3,), buffer="bn.mean"),
            ),
            (Port("loss_sum", "loss_sum", "float32", ()), Port("w.new", "parameter", "float32", (2, 3), parameter="w")),
            precision="float16",
            provider="cuda",
        )
    },
    parameters=(
        Parameter("w", (2, 3), "float32", "head", tied_to=("v",), inference=ByteRange("infer.onnx", 8, 24)),
        Parameter("b", (), "float64"),
        *(
            Parameter(
                f"u.{rule}",
                shape,
                "float32",
                "head",
                "added",
                merge=Merge("u", rule, 0.5, (4, 5), True, 0.1),
                inference=ByteRange("infer.onnx", 44, 80),
            )
            for rule, shape in ((LORA_A, (2, 4)), (LORA_B, (5, 2)))
        ),
    ),
    buffers=(Buffer("bn.mean", (3,), "float32", "mean", "bn", (BATCH, 4, "?"), ByteRange("infer.onnx", 32, 12)),),
    parameter_groups=(ParameterGroup("head", 0.5, 0.0),),
    dimensions={"length": 7},
    loss=Loss("cross_entropy", "output", 5, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0), label_smoothing=0.1),
    optimizer=Optimizer("adamw", {"beta1": 0.9}, 0.01),
    frozen_parameters=7,
    classes=("a", "b"),
    preprocessing={"mean": [0.5, 1], "nested": {"size": None}},
    files={"train.onnx": "0", "infer.onnx": "1"},
    versions={"onnx": "1.2"},
    work=StepWork(Amount(9, 8), Amount(7, 6), Amount(5, 4)),
    work_from_features=StepWork(Amount(4, 3), Amount(2, 1), Amount(5, 4)),
    frozen_weights=FrozenWeights("int8", 3, 30, 96, RelativeError(0.25, 0.125), RelativeError(0.5, 0.0625)),
)


def test_json_goes_both_ways() -> None:
    assert parse_manifest(manifest_json(FULL)) == FULL
    assert manifest_json(parse_manifest(manifest_json(FULL))) == manifest_json(FULL)


def test_what_is_derived() -> None:
    assert FULL.num_trainable == 6 + 1 + 2 * (4 + 5)
    assert FULL.groups == ("head", "default")
    assert [p.name for p in FULL.graph("train").named("parameter")] == ["w"]
    assert [p.name for p in FULL.graph("train").named("parameter", "outputs")] == ["w.new"]
    assert [p.size for p in FULL.parameters] == [6, 1, 8, 10]
    assert {w: (a.shape, b.shape) for w, (a, b) in FULL.adapters.items()} == {"u": ((2, 4), (5, 2))}
    assert FULL.work is not None
    assert (FULL.work.flops, FULL.work.bytes) == (21, 18)


def test_a_manifest_of_before_still_reads() -> None:
    values = json.loads(manifest_json(FULL))
    del values["parameter_groups"], values["work"], values["work_from_features"]
    values["loss"] = {"kind": "cross_entropy", "output": "output", "num_classes": 5}
    old = parse_manifest(json.dumps(values).encode())
    assert old.loss == Loss("cross_entropy", "output", 5)
    assert (old.work, old.work_from_features) == (None, None)
    assert old.parameter_group("head") == ParameterGroup("head", 1.0, None)


def test_a_graph_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="'net' has no 'eval' graph \\(it has train\\)"):
        FULL.graph("eval")


def port(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda m: m["graphs"]["train"]["inputs"][1].update(changes)


def in_blocks(*rows: list[int]) -> Callable[[dict[str, Any]], Any]:
    def change(m: dict[str, Any]) -> None:
        inputs = m["graphs"]["train"]["inputs"]
        inputs[1:2] = [
            {**inputs[1], "name": f"w.{i}", "rows": [a, b], "shape": [b - a, 3]} for i, (a, b) in enumerate(rows)
        ]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema_version=2), "has schema version 2; this onnxft reads version 1"),
        (lambda m: m.update(schema_version=0), "has schema version 0"),
        (lambda m: m.pop("schema_version"), "has schema version None"),
        (lambda m: m.pop("loss"), "missing required field `loss`"),
        (lambda m: m.update(batch_size="4"), "Expected `int`, got `str` - at `$.batch_size`"),
        (lambda m: m.update(batch_size=0), "batch_size is 0"),
        (lambda m: m.update(recompute=-1), "recompute is -1, it must be at least 0"),
        (lambda m: m.update(generator="ort-training", recompute=1), "recompute is 1 with the generator ort-training"),
        (lambda m: m.update(recompute=1), "recompute is 1, and the graphs that compute activations again are none"),
        (
            lambda m: m.update(recomputed={"float32": m["graphs"]}),
            "recompute is 0, and the graphs that compute activations again are float32 train",
        ),
        (lambda m: m.update(generator="other"), "at `$.generator`"),
        (lambda m: m["loss"].update(kind="hinge"), "at `$.loss.kind`"),
        (lambda m: m["loss"].update(class_weights=[1.0]), "the loss has the class_weights [1.0] for 5 classes"),
        (lambda m: m["loss"].update(pos_weight=[-1.0]), "the loss has the pos_weight [-1.0]"),
        (lambda m: m["loss"].update(label_smoothing=1.0), "the loss has the label_smoothing 1.0"),
        (lambda m: m["loss"].update(delta=0.0), "and the delta 0.0"),
        (lambda m: m["parameter_groups"][0].update(name="tail"), "the parameter groups ['tail'] are not those"),
        (lambda m: m["parameter_groups"].append(m["parameter_groups"][0]), "['head', 'head'] are not those"),
        (lambda m: m["parameter_groups"][0].update(lr_factor=0.0), "group 'head' has a rate or decay that is out of"),
        (lambda m: m["graphs"].update(other=m["graphs"]["train"]), "Invalid enum value 'other'"),
        (lambda m: m["graphs"]["train"].update(file="eval.onnx"), "'eval.onnx', which has no sha256"),
        (lambda m: m["graphs"]["train"].update(file="../x"), "'../x', which has no sha256"),
        (lambda m: m["files"].update({"../x": "0"}), "the file name '../x' leaves the artifact directory"),
        (lambda m: m["files"].update({"/etc/passwd": "0"}), "'/etc/passwd' leaves the artifact directory"),
        (lambda m: m["files"].update({"a/b": "0"}), "'a/b' leaves the artifact directory"),
        (lambda m: m["files"].update({"..": "0"}), "'..' leaves the artifact directory"),
        (lambda m: m["files"].update({"": "0"}), "'' leaves the artifact directory"),
        (lambda m: m["files"].pop("infer.onnx"), "'w' lies in the file 'infer.onnx', which has no sha256"),
        (lambda m: m["dimensions"].update(sequence=0), "the dimension 'sequence' has the size 0"),
        (lambda m: m["dimensions"].update(batch=3), "the dimension 'batch' has the size 3"),
        (
            lambda m: m["graphs"]["train"]["inputs"][0].update(shape=["batch", "sequence"]),
            "of graph 'train' has the dimension 'sequence', whose size is not given",
        ),
        (port(parameter="u"), "'w' of graph 'train' belongs to the unknown parameter 'u'"),
        (port(shape=[3, 2]), "'w' of graph 'train' has the shape [3, 2], its parameter [2, 3]"),
        (port(rows=[0, 1]), "'w' of graph 'train' has the shape [2, 3], its parameter [2, 3], of which it has (0, 1)"),
        (port(rows=[0, 1], shape=[1, 3]), "graph 'train' has some rows of 'w' twice or not at all"),
        (port(rows=[1, 2], shape=[1, 3]), "graph 'train' has some rows of 'w' twice or not at all"),
        (port(rows=[1, 3], shape=[2, 3]), "graph 'train' has some rows of 'w' twice or not at all"),
        (in_blocks([0, 1], [0, 1]), "graph 'train' has some rows of 'w' twice or not at all"),
        (in_blocks([0, 2], [2, 2]), "graph 'train' has some rows of 'w' twice or not at all"),
        (
            lambda m: m["graphs"]["train"]["inputs"][3].update(rows=[0, 3]),
            "'bn.mean' of graph 'train' has rows of no parameter",
        ),
        (port(shape=[10**12]), "has the shape [1000000000000]"),
        (port(role="weights"), "Invalid enum value 'weights'"),
        (
            lambda m: m["graphs"]["train"]["inputs"][3].update(buffer=None),
            "'bn.mean' of graph 'train' has the role 'buffer'",
        ),
        (port(buffer="bn.mean"), "'w' of graph 'train' has the role 'parameter' and the buffer 'bn.mean'"),
        (lambda m: m["graphs"]["train"]["inputs"][3].update(shape=[4]), "shape [4]; the running statistic 'bn.mean'"),
        (lambda m: m.update(buffers=[]), "shape [3]; the running statistic 'bn.mean' is unknown or has another"),
        (lambda m: m["buffers"].append(m["buffers"][0]), "a running statistic is listed twice"),
        (lambda m: m["buffers"][0].update(name="w"), "or as a parameter too"),
        (
            lambda m: m["buffers"][0]["inference"].update(file="x"),
            "'bn.mean' lies in the file 'x', which has no sha256",
        ),
        (lambda m: m["parameters"].append(m["parameters"][0]), "a parameter is listed twice"),
        (lambda m: m["work"]["forward"].update(flops=-1), "the work of 'forward' is -1 operations and 8 bytes"),
        (
            lambda m: m["work_from_features"]["data_gradients"].update(bytes=-2),
            "the work of 'data_gradients' is 2 operations and -2 bytes",
        ),
        (lambda m: m["work"]["data_gradients"].update(bytes=0.5), "at `$.work.data_gradients.bytes`"),
        (lambda m: m["frozen_weights"].update(precision="int4"), "Invalid enum value 'int4'"),
        (
            lambda m: m["frozen_weights"].update(precision="float32"),
            "3 frozen weights in float32 have 30 bytes, and 96",
        ),
        (lambda m: m["frozen_weights"].update(bytes=96), "3 frozen weights in int8 have 96 bytes, and 96 in float32"),
        (lambda m: m["frozen_weights"].update(stored=0), "0 frozen weights in int8 have 30 bytes"),
        (lambda m: m["frozen_weights"]["outputs"].update(max=-0.1), "the relative error of the frozen weights or"),
        (lambda m: m.update(parameters=[], graphs={}), "no parameter is trained"),
        (lambda m: m["parameters"].pop(), "'u.lora_A' [2, 4] is no factor of an adapter of [4, 5]"),
        (lambda m: m["parameters"][2].update(shape=[3, 4]), "[3, 4] is no factor of an adapter of [4, 5]"),
        (lambda m: m["parameters"][3].update(shape=[4, 2]), "is no factor of an adapter of [4, 5]"),
        (lambda m: m["parameters"][2]["merge"].update(transposed=False), "is no factor of an adapter of [4, 5]"),
        (lambda m: m["parameters"][2]["merge"].update(target_shape=[4]), "is no factor of an adapter of [4]"),
        (lambda m: m["parameters"][2]["merge"].update(target="w"), "factors of an adapter are not called after what"),
        (lambda m: m["parameters"][2]["merge"].update(rule="lora_C"), "Invalid enum value 'lora_C'"),
        (lambda m: m["parameters"][2]["merge"].update(alpha=0.0), "'u.lora_A' has a scale or dropout out of range"),
        (lambda m: m["parameters"][3]["merge"].update(dropout=1.0), "'u.lora_B' has a scale or dropout out of range"),
        (lambda m: m["parameters"][1].update(name="u"), "or its target is trained too"),
        (lambda m: m["parameters"][2].update(origin="model"), "a parameter that was added is merged into none"),
    ],
)
def test_what_does_not_fit_names_the_field(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    values = json.loads(manifest_json(FULL))
    change(values)
    with pytest.raises(ArtifactError) as err:
        parse_manifest(json.dumps(values).encode(), "here.json")
    assert words in str(err.value)
    assert "here.json" in str(err.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", manifest_json(FULL)[:-20]])
def test_what_is_no_json_is_an_error(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"here\.json"):
        parse_manifest(data, "here.json")


def test_a_directory_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the directory does not exist"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(ArtifactError, match=r"it holds no manifest.json. Make one with `onnxft export`"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest_json(FULL))
    assert read_manifest(tmp_path) == FULL


def test_a_manifest_that_is_wrong_is_not_written() -> None:
    with pytest.raises(ArtifactError, match="batch_size is 0"):
        check_manifest(replace(FULL, batch_size=0))


def test_half_precision_has_graphs_of_its_own() -> None:
    lowered = GraphFile("train.float16.onnx", precision="float16")
    manifest = replace(FULL, half={"float16": {"train": lowered}}, files={**FULL.files, lowered.file: "0"})
    read = parse_manifest(manifest_json(manifest))
    assert read == manifest
    assert read.graph("train", "float16") == lowered
    assert read.graph("train") == FULL.graph("train")
    assert [graph.file for _, graph in read.every_graph] == ["train.onnx", "train.float16.onnx"]
    with pytest.raises(ArtifactError, match=r"no 'train' graph in bfloat16\. Export it again with --precision bf"):
        read.graph("train", "bfloat16")


def both_kinds() -> Manifest:
    """With graphs that compute activations again, in float16 too."""
    train = replace(FULL.graphs["train"], precision="float32")
    half = replace(train, file="gradients.float16.onnx", precision="float16")
    again = replace(train, file="train.recomputed.onnx")
    gradients = replace(train, file="gradients.onnx"), replace(train, file="gradients.recomputed.onnx")
    half_again = replace(half, file="gradients.recomputed.float16.onnx")
    written = (half, again, *gradients, half_again)
    return replace(
        FULL, recompute=2, graphs={"train": train, "gradients": gradients[0]}, half={"float16": {"gradients": half}},
        recomputed={"float32": {"train": again, "gradients": gradients[1]}, "float16": {"gradients": half_again}},
        files={**FULL.files, **{graph.file: "0" for graph in written}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("role", "precision", "recompute", "file"),
    [
        ("train", "float32", False, "train.onnx"),
        ("train", "float32", True, "train.recomputed.onnx"),
        ("gradients", "float32", True, "gradients.recomputed.onnx"),
        ("gradients", "float16", False, "gradients.float16.onnx"),
        ("gradients", "float16", True, "gradients.recomputed.float16.onnx"),
    ],
)
def test_graphs_that_compute_activations_again_stand_beside_the_others(
    role: Any, precision: Any, recompute: bool, file: str
) -> None:
    manifest = parse_manifest(manifest_json(both_kinds()))
    assert manifest == both_kinds()
    assert manifest.graph(role, precision, recompute=recompute).file == file
    assert file in [graph.file for _, graph in manifest.every_graph]


def test_an_artifact_has_graphs_of_a_batch_alone_in_both_kinds_or_in_none() -> None:
    values = json.loads(manifest_json(both_kinds()))
    for graphs in (values["graphs"], values["recomputed"]["float32"]):
        graphs["batch_gradients"] = graphs["gradients"]
    read = parse_manifest(json.dumps(values).encode())
    assert read.graph("batch_gradients", recompute=True).file == "gradients.recomputed.onnx"


@pytest.mark.parametrize("recompute", [False, True])
def test_a_role_of_one_kind_is_taken_either_way(recompute: bool) -> None:
    assert FULL.graph("train", recompute=recompute) == FULL.graphs["train"]


@pytest.mark.parametrize(("asked", "both", "plain"), [(None, True, False), (True, True, None), (False, False, False)])
def test_who_recomputes(asked: bool | None, both: bool, plain: bool | None) -> None:
    assert both_kinds().recomputes(asked) == both
    if plain is not None:
        assert FULL.recomputes(asked) == plain
        return
    for manifest, words in ((FULL, "Export it with --recompute"), (replace(FULL, generator="ort-training"), "native")):
        with pytest.raises(ConfigError, match=f"'net' has no graphs that compute activations again.*{words}"):
            manifest.recomputes(asked)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["recomputed"].pop("float16"), "again are float32 gradients, float32 train"),
        (lambda m: m["recomputed"]["float32"].pop("train"), "again are float16 gradients, float32 gradients"),
        (
            lambda m: m["graphs"].update(batch_gradients=m["graphs"]["gradients"]),
            "again are float16 gradients, float32 gradients, float32 train",
        ),
        (lambda m: m.update(recompute=0), "recompute is 0, and"),
        (
            lambda m: m["recomputed"]["float32"]["train"]["inputs"].pop(),
            "the graph 'train.recomputed.onnx' has other inputs or outputs than the one that keeps activations",
        ),
        (
            lambda m: m["recomputed"]["float16"]["gradients"].update(precision="float32"),
            "a graph listed under float16 has another precision",
        ),
        (lambda m: m["files"].pop("train.recomputed.onnx"), "'train.recomputed.onnx', which has no sha256"),
    ],
)
def test_kinds_of_graphs_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    values = json.loads(manifest_json(both_kinds()))
    change(values)
    with pytest.raises(ArtifactError) as err:
        parse_manifest(json.dumps(values).encode())
    assert words in str(err.value)


def test_where_results_may_be_written_is_each_graph_s_own() -> None:
    values = json.loads(manifest_json(both_kinds()))
    values["recomputed"]["float32"]["train"]["outputs"][1]["in_place"] = True
    manifest = parse_manifest(json.dumps(values).encode())
    assert manifest.graph("train", recompute=True).outputs[1].in_place
    assert not manifest.graph("train").outputs[1].in_place


def test_a_manifest_without_half_precision_is_read() -> None:
    """As those written before there was any."""
    fields = json.loads(manifest_json(FULL))
    del fields["half"]
    assert parse_manifest(json.dumps(fields).encode()) == FULL


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (GraphFile("train.float16.onnx"), "a graph listed under float16 has another precision"),
        (GraphFile("elsewhere.onnx", precision="float16"), "names the file 'elsewhere.onnx', which has no sha256"),
    ],
)
def test_half_precision_graphs_are_checked(graph: GraphFile, words: str) -> None:
    manifest = replace(FULL, half={"float16": {"train": graph}}, files={**FULL.files, "train.float16.onnx": "0"})
    with pytest.raises(ArtifactError, match=words):
        parse_manifest(manifest_json(manifest))
