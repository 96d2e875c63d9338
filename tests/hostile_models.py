"""Models that name files elsewhere, in every place where a model can hold a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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


HIDING_PLACES = (
    in_subgraph, in_attribute, in_function, in_sparse_initializer, in_sparse_attribute, in_training_info,
)  # fmt: skip
