"""A graph of an artifact that fits its hash may still name any file: none but those of the manifest is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from hostile_models import HIDING_PLACES, external, model, save
from onnx import TensorProto, helper

from onnxft.errors import ArtifactError
from onnxft.files import location_beside, sha256
from onnxft.runtime.graph_files import MESSAGES, check_graph
from onnxft.runtime.session import TrainSession


def test_every_field_that_leads_to_a_tensor_or_node_is_followed() -> None:
    wanted: dict[str, dict[int, str]] = {}
    waiting: list[Descriptor] = [onnx.ModelProto.DESCRIPTOR]
    followed = set(MESSAGES)
    while waiting:
        message = waiting.pop()
        if message.name in wanted:
            continue
        inner = {f.number: f.message_type for f in message.fields if f.message_type is not None}
        wanted[message.name] = {n: m.name for n, m in inner.items() if m.name in followed}
        waiting += inner.values()
    # What is not followed has neither tensors nor nodes in it; metadata of a message are texts that nothing opens.
    ends = {name: fields for name, fields in wanted.items() if name not in followed}
    assert not any(set(fields.values()) - {"StringStringEntryProto"} for fields in ends.values()), ends
    texts = {name: {n: m for n, m in wanted[name].items() if m != "StringStringEntryProto"} for name in followed}
    texts["TensorProto"] = {TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "StringStringEntryProto"}
    assert texts == MESSAGES


@pytest.mark.parametrize("place", [model, *HIDING_PLACES])
@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "sub/../../secret", "..\\secret", "C:\\secret", "", "unlisted.bin", "data/w.bin", "."],
)
def test_no_tensor_of_any_kind_leads_to_an_unlisted_file(
    place: Callable[[TensorProto], onnx.ModelProto], location: str, tmp_path: Path
) -> None:
    path = save(place(external("hidden", location)), tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"tensor 'hidden' .* no file that the manifest lists"):
        check_graph(path, ["w.bin", "model.onnx.data"])


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", location_beside(Path("model.onnx"))])
@pytest.mark.parametrize("place", [model, *HIDING_PLACES])
def test_files_of_the_manifest_may_be_named(
    place: Callable[[TensorProto], onnx.ModelProto], location: str, tmp_path: Path
) -> None:
    check_graph(save(place(external("hidden", location)), tmp_path / "m"), ["w.bin", "model.onnx.data"])


def test_an_operator_that_reads_files_is_refused(tmp_path: Path) -> None:
    proto = model(external("w", "w.bin"))
    proto.graph.node.append(
        helper.make_node("EPContext", ["x"], ["c"], domain="com.microsoft", ep_cache_context="../secret", embed_mode=0)
    )
    with pytest.raises(ArtifactError, match="operator 'EPContext', which makes the runtime read other files"):
        check_graph(save(proto, tmp_path / "m"), ["w.bin"])


def nested(depth: int) -> bytes:
    proto = model(external("w", "w.bin"))
    for _ in range(depth):
        graph = proto.graph
        outer = onnx.ModelProto()
        outer.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(
            graph
        )
        proto = outer
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\x3a\xff\xff\xff\x7f", "ends behind its message"),
        (b"\x3a" + b"\xff" * 11, "a number ends behind its message"),
        (b"\x3a", "a number ends behind its message"),
        (b"ORTM is another format", "is not an ONNX model"),
        (nested(30), "nested more than 64 deep"),
    ],
    ids=["empty", "length", "varint", "cut", "other format", "nested"],
)
def test_what_is_no_model_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=words):
        check_graph(tmp_path / "graph.onnx", [])


def test_an_artifact_is_refused_before_its_graph_is_opened(exported: Callable[..., Path], tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(exported("mlp"), tmp_path / "mlp"))
    (tmp_path / "secret").write_bytes(bytes(64))
    path = artifact / "train.onnx"
    proto = onnx.load_model(path, load_external_data=False)
    proto.graph.initializer.append(external("hidden", "../secret"))
    path.write_bytes(proto.SerializeToString())
    values = json.loads((artifact / "manifest.json").read_text())
    values["files"]["train.onnx"] = sha256(path)
    (artifact / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"tensor 'hidden' of '.*train.onnx' lies in '../secret'"):
        TrainSession(artifact, threads=1)
