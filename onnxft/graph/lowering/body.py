"""The function bodies that the standard gives for operators: the way of last resort."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxft.graph.lowering.registry import dtype_of

DOMAIN = "onnxft.body"
"""Where a body stands until it is inlined."""


def has_body(op_type: str, version: int) -> bool:
    """Whether the standard defines the operator of that opset by others."""
    schema = onnx.defs.get_schema(op_type, version, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


def call_body(model: ir.Model, node: ir.Node, version: int) -> None:
    """Let `node` call its body as a function of the model, one of its own; inlining puts it in its place."""
    schema = onnx.defs.get_schema(node.op_type, version, "")
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)
    function = ir.serde.deserialize_function(_body(schema, node))
    imports = dict(function.opset_imports)
    for inner in function.all_nodes():
        inner.version = imports.get(inner.domain, version)
    function.opset_imports.clear()
    node.domain, node.op_type = DOMAIN, f"{node.op_type}_{len(model.functions)}"
    model.functions[node.op_identifier()] = ir.Function(
        node.domain, node.op_type, graph=function.graph, attributes=list(function.attributes.values())
    )


def _body(schema: onnx.defs.OpSchema, node: ir.Node) -> onnx.FunctionProto:
    if schema.has_function:
        return schema.function_body
    types = []
    for value in node.inputs:
        proto = onnx.TypeProto()
        if value is not None:
            dtype_of(node, value)
            assert value.type is not None
            proto = ir.serde.serialize_type(value.type)
            if value.shape is not None:
                ir.serde.serialize_shape_into(proto, value.shape)
        types.append(proto.SerializeToString())
    body = onnx.FunctionProto()
    body.ParseFromString(
        schema.get_context_dependent_function(ir.serde.serialize_node(node).SerializeToString(), types)
    )
    return body
