"""Bringing a graph of any opset that onnxft reads to opset 18.

What stays, stays as it is; what changed or is new is rewritten by `graph/lowering/`, one node at a
time, in the order of the graph. Weights are not touched, and a value that is replaced hands on its
name.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.errors import GradientError, ModelError
from onnxft.graph import lowering as lowering  # fills the registry
from onnxft.graph.builder import builder
from onnxft.graph.lowering.body import call_body, has_body
from onnxft.graph.lowering.registry import OPSET as OPSET
from onnxft.graph.lowering.registry import Rewrite, refusal, rewrite_of
from onnxft.graph.lowering.splice import Names, replace
from onnxft.graph.lowering.types import check_known, check_taken
from onnxft.graph.lowering.unchanged import WIDENED, WITHOUT_FORM

OLDEST = 13
"""The oldest opset that is read."""
_STANDARD = ("", "ai.onnx")


def convert(model: ir.Model) -> None:
    """Inline the functions of `model` and bring it to opset 18, in place.

    Raises:
        ModelError: its opset is not read, or an operator or element type has no form in opset 18.
    """
    version = _version(model.opset_imports, "the model")
    _remember_opsets(model, version)
    _inline(model)
    check_known(model)
    if any(_changes(node) for node in model.graph.all_nodes()):
        _infer_whole(model)
        while _lower_graph(model, model.graph, Names(model)):
            _inline(model)
    for node in model.graph.all_nodes():
        if node.domain == "":
            node.version = OPSET
    for graph in model.graphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = OPSET
    model.opset_imports.pop("ai.onnx", None)
    model.opset_imports[""] = OPSET


def is_lowered(op_type: str, domain: str, version: int) -> bool:
    """Whether `convert` writes the operator of that opset by others, so that it needs no gradient rule."""
    if domain != "":
        return rewrite_of(domain, op_type, OPSET) is not None
    try:
        since = int(onnx.defs.get_schema(op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        return False
    newer = since > max(OPSET, WIDENED.get(op_type, 0)) and op_type not in WITHOUT_FORM
    return rewrite_of("", op_type, since) is not None or (newer and has_body(op_type, version))


def _version(imports: dict[str, int], what: str) -> int:
    version = imports.get("", imports.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise ModelError(
            f"{what} has opset {version or '?'}; onnxft reads opset {OLDEST} to {newest}. "
            f"Export it with opset_version={OPSET}."
        )
    return version


def _remember_opsets(model: ir.Model, version: int) -> None:
    """Let every node remember its own opset: that of a function may differ from that of the model."""
    _remember(model.graph.all_nodes(), version)
    for function in model.functions.values():
        imports = function.opset_imports
        if any(domain in imports for domain in _STANDARD):
            _remember(function.all_nodes(), _version(imports, f"the function '{function.name}'"))
        imports.update({domain: number for domain, number in model.opset_imports.items() if domain in imports})


def _remember(nodes: Iterator[ir.Node], version: int) -> None:
    for node in nodes:
        if node.domain in _STANDARD:
            node.domain, node.version = "", version


def _inline(model: ir.Model) -> None:
    """Put the bodies of functions in the place of their calls."""
    try:
        common.InlinePass()(model)
    except Exception as err:
        raise ModelError(
            f"the functions of the model cannot be inlined: {err.__cause__ or err}. Export it without functions."
        ) from err


def _changes(node: ir.Node) -> bool:
    """Whether the node is not that of opset 18 yet."""
    return _rewrite(node) is not None or (node.domain == "" and onnx.defs.has(node.op_type) and _since(node) > OPSET)


def _rewrite(node: ir.Node) -> Rewrite | None:
    known = node.domain == "" and onnx.defs.has(node.op_type)
    return rewrite_of(node.domain, node.op_type, _since(node) if known else OPSET)


def _since(node: ir.Node) -> int:
    """The opset at which the operator got the form that the node has."""
    version = node.version or OPSET
    try:
        return int(onnx.defs.get_schema(node.op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        raise refusal(
            node, f"is no operator of opset {version}", "Export the model again; onnx.checker says what is wrong"
        ) from None


def _infer_whole(model: ir.Model) -> None:
    """Types and shapes of all values, where the graph has one opset and standard operators alone."""
    nodes = list(model.graph.all_nodes())
    if {node.version for node in nodes} == {model.opset_imports.get("")} and all(n.domain == "" for n in nodes):
        common.ShapeInferencePass(data_prop=True)(model)


def _lower_graph(model: ir.Model, graph: ir.Graph, names: Names) -> bool:
    """Bring the nodes of a graph and of its subgraphs to opset 18; whether some wait for their body to be inlined."""
    waits = False
    for node in list(graph):
        _infer(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                waits |= _lower_graph(model, attribute.as_graph(), names)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    waits |= _lower_graph(model, inner, names)
        waits |= _changes(node) and _lower(model, graph, node, names)
    return waits


def _lower(model: ir.Model, graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    """Bring a node to opset 18; whether it waits for its body to be inlined."""
    rewrite = _rewrite(node)
    if rewrite is None:
        version, since = node.version or OPSET, _since(node)
        if node.op_type in WITHOUT_FORM:
            raise refusal(node, WITHOUT_FORM[node.op_type], "Freeze or cut the graph before it")
        if since > WIDENED.get(node.op_type, 0):
            if not has_body(node.op_type, version):
                raise refusal(
                    node,
                    f"is that of opset {since}, which onnxft cannot bring to opset {OPSET}",
                    f"Export the model with opset_version={OPSET}",
                )
            call_body(model, node, version)
            return True
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="lowered"))
    try:
        result = None if rewrite is None else rewrite(op, node)
    except GradientError as err:
        raise refusal(node, f"cannot be brought to opset {OPSET}: {err}", f"Or set opset_version={OPSET}") from err
    if result is None:
        check_taken(node)
        node.version = OPSET
        return False
    replace(graph, node, op, [result] if isinstance(result, ir.Value) else list(result), names)
    return False


def _infer(node: ir.Node) -> None:
    """Types and shapes of the outputs of one node by its own opset, where they are missing."""
    if node.domain != "" or all(v.type is not None and v.shape is not None for v in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    if any(value.type is None for value in inputs) or not onnx.defs.has(node.op_type):
        return
    types, data = {}, {}
    for value in inputs:
        assert value.type is not None
        types[value.name] = ir.serde.serialize_type(value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(types[value.name], value.shape)
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size <= 64:
            data[value.name] = ir.serde.serialize_tensor(tensor)
    try:
        schema = onnx.defs.get_schema(node.op_type, node.version or OPSET, "")
        found = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, onnx.checker.ValidationError):
        return  # a rewrite that needs the type says so
    for value in node.outputs:
        if value.name in found:
            value.type = value.type or ir.serde.deserialize_type_proto_for_type(found[value.name])
            value.shape = value.shape or ir.serde.deserialize_type_proto_for_shape(found[value.name])
