"""A file from anybody: damaged ones are named, and external data never leads out of the model's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxft.errors import ExitStatus, ModelError
from onnxft.graph.load import load_model

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def external(name: str, location: str, offset: int = 0, length: int | None = WEIGHT.nbytes) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), **({} if length is None else {"length": str(length)})}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def info(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(weight: TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [info("x", ["N", 3])], [info("y", ["N", 2])], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize(("location", "length"), [("w.bin", 24), ("data/w.bin", 24), ("./w.bin", 24), ("w.bin", None)])
def test_external_data_stays_in_its_file(location: str, length: int | None, tmp_path: Path) -> None:
    path = save(model(external("w", location, 8, length)), tmp_path / "m")
    (path.parent / location).parent.mkdir(exist_ok=True)
    (path.parent / location).write_bytes(b"\0" * 8 + WEIGHT.tobytes())
    found = load_model(path).graph.initializers["w"].const_value
    np.testing.assert_array_equal(found.numpy(), WEIGHT)
    assert Path(found.path) == path.parent / location


def link_file(folder: Path, outside: Path) -> None:
    (folder / "w.bin").symlink_to(outside / "w.bin")


def link_inside(folder: Path, outside: Path) -> None:
    (folder / "real.bin").write_bytes(WEIGHT.tobytes())
    (folder / "w.bin").symlink_to("real.bin")


def link_parent(folder: Path, outside: Path) -> None:
    (folder / "data").symlink_to(outside)


def link_hard(folder: Path, outside: Path) -> None:
    os.link(outside / "w.bin", folder / "w.bin")


def pipe(folder: Path, outside: Path) -> None:
    os.mkfifo(folder / "w.bin")


def directory(folder: Path, outside: Path) -> None:
    (folder / "w.bin").mkdir()


def short(folder: Path, outside: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes()[:-1])


def whole(folder: Path, outside: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())


BAD = [
    ("w.bin", link_file, "a symbolic link"),
    ("w.bin", link_inside, "a symbolic link"),
    ("data/w.bin", link_parent, "a symbolic link"),
    ("w.bin", link_hard, "a hard link"),
    ("w.bin", pipe, "no regular file"),
    ("w.bin", directory, "no regular file"),
    ("w.bin", short, "ends at byte 24, but 'w.bin' has 23"),
    ("missing.bin", whole, "is missing"),
    ("", whole, "names the file ''"),
    ("../outside/w.bin", whole, "leaves the folder of the model"),
    ("data/../w.bin", whole, "leaves the folder of the model"),
    ("..\\outside\\w.bin", whole, "leaves the folder of the model"),
    ("/etc/passwd", whole, "must be a path relative to the model"),
    ("C:\\w.bin", whole, "must be a path relative to the model"),
    ("w.bin\0", whole, "must be a path relative to the model"),
]


@pytest.mark.parametrize(("location", "place", "words"), BAD)
def test_external_data_is_only_read_from_plain_files_in_the_folder(
    location: str, place: Callable[[Path, Path], None], words: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    path = save(model(external("w", location)), tmp_path / "m")
    place(path.parent, outside)
    with pytest.raises(ModelError) as err:
        load_model(path)
    assert words in str(err.value)
    assert "external data of tensor 'w'" in str(err.value)
    assert err.value.exit_status == ExitStatus.MODEL


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [(-8, 24, "takes 24 bytes from -8"), (0, 20, "takes 20 bytes from 0"), (1, 24, "ends")],
)
def test_a_range_that_does_not_fit_is_refused(offset: int, length: int, words: str, tmp_path: Path) -> None:
    path = save(model(external("w", "w.bin", offset, length)), tmp_path / "m")
    (path.parent / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match=words):
        load_model(path)


def in_subgraph(bad: TensorProto) -> onnx.ModelProto:
    then = helper.make_graph([helper.make_node("Identity", ["v"], ["a"])], "then", [], [info("a", [3, 2])], [bad])
    other = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "else", [], [info("b", [3, 2])])
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.input.append(helper.make_tensor_value_info("p", TensorProto.BOOL, []))
    proto.graph.node.append(helper.make_node("If", ["p"], ["z"], then_branch=then, else_branch=other))
    return proto


def in_attribute(bad: TensorProto) -> onnx.ModelProto:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=bad))
    return proto


def in_function(bad: TensorProto) -> onnx.ModelProto:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    opset = helper.make_opsetid("", 18)
    body = [helper.make_node("Constant", [], ["y"], value=bad)]
    proto.functions.append(helper.make_function("own", "F", [], ["y"], body, [opset]))
    return proto


def in_sparse_initializer(bad: TensorProto) -> onnx.ModelProto:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    indices = numpy_helper.from_array(np.arange(6), "i")
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=bad, indices=indices, dims=[9]))
    return proto


def in_sparse_attribute(bad: TensorProto) -> onnx.ModelProto:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    sparse = onnx.SparseTensorProto(values=numpy_helper.from_array(WEIGHT, "w"), indices=bad, dims=[9])
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    return proto


def in_training_info(bad: TensorProto) -> onnx.ModelProto:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    proto.training_info.add().initialization.initializer.append(bad)
    return proto


@pytest.mark.parametrize(
    "place", [in_subgraph, in_attribute, in_function, in_sparse_initializer, in_sparse_attribute, in_training_info]
)
def test_every_kind_of_tensor_is_checked(place: Callable[[TensorProto], onnx.ModelProto], tmp_path: Path) -> None:
    path = save(place(external("hidden", "../secret")), tmp_path / "m")
    with pytest.raises(ModelError, match=r"external data of tensor 'hidden' .* leaves the folder"):
        load_model(path)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    path = save(in_sparse_initializer(numpy_helper.from_array(WEIGHT.reshape(-1), "sparse")), tmp_path / "m")
    with pytest.raises(ModelError, match="the sparse tensor 'sparse'"):
        load_model(path)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "is not an ONNX model"),
        (lambda data: b"", "it has no graph"),
        (lambda data: b"PK\3\4 a zip file", "is not an ONNX model"),
        (lambda data: b"\x0a\x03abc", "it has no graph"),
    ],
)
def test_what_is_no_model_is_refused(change: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = save(model(numpy_helper.from_array(WEIGHT, "w")), tmp_path / "m")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError) as err:
        load_model(path)
    assert words in str(err.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: setattr(w, "raw_data", w.raw_data[:-4]), "holds 20 bytes, its shape and type take 24"),
        (lambda w: w.dims.append(2**40), "holds 24 bytes"),
        (lambda w: w.dims.append(-1), r"has the shape \[3, 2, -1\]"),
        (lambda w: setattr(w, "data_type", 99), "has the type 99"),
    ],
)
def test_a_tensor_that_is_not_what_it_announces_is_refused(
    change: Callable[[TensorProto], None], words: str, tmp_path: Path
) -> None:
    weight = numpy_helper.from_array(WEIGHT, "w")
    change(weight)
    with pytest.raises(ModelError, match=words):
        load_model(save(model(weight), tmp_path / "m"))


def test_a_graph_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    proto = model(numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.node.add().CopyFrom(proto.graph.node[0])
    with pytest.raises(ModelError, match="is not a valid ONNX model: Output 'y' is redeclared"):
        load_model(save(proto, tmp_path / "m"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'.*none\.onnx' does not exist"):
        load_model(tmp_path / "none.onnx")
