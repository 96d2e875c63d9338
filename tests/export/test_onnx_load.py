"""A file from anybody: damaged ones are named, and external data never leads out of the model's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile_models import HIDING_PLACES, WEIGHT, external, in_sparse_initializer, model, save
from onnx import TensorProto, numpy_helper

from onnxft.errors import ExitStatus, ModelError
from onnxft.graph.load import load_model


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


@pytest.mark.parametrize("place", HIDING_PLACES)
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
