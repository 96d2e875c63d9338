"""Which operators of a model have a rule: the answer before an export is tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.errors import ModelError
from onnxft.grad.registry import supported_ops, without_gradient, without_rule

Status = Literal["rule", "by nature", "not yet", "other domain"]


@dataclass(frozen=True)
class Coverage:
    """One operator of a model."""

    op_type: str
    domain: str
    count: int
    """Nodes, those of subgraphs and functions included."""
    status: Status
    reason: str = ""
    """Why there is no derivative by nature, or what stands in the way of a rule."""


def coverage(path: Path) -> tuple[Coverage, ...]:
    """The operators of an ONNX file by name, calls of the file's own functions left out (their bodies count).

    Raises:
        ModelError: the file is missing or holds no ONNX model.
    """
    model = _load(path)
    own = {(f.domain, f.name) for f in model.functions.values()}
    counts: Counter[tuple[str, str]] = Counter()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) not in own:
                counts[node.op_type, domain] += 1
    return tuple(
        Coverage(op_type, domain, n, *_status(op_type, domain)) for (op_type, domain), n in sorted(counts.items())
    )


def _status(op_type: str, domain: str) -> tuple[Status, str]:
    if domain:
        return "other domain", ""
    if op_type in supported_ops():
        return "rule", ""
    reason = without_gradient().get(op_type)
    return ("not yet", without_rule().get(op_type, "")) if reason is None else ("by nature", reason)


def _load(path: Path) -> ir.Model:
    if not path.is_file():
        raise ModelError(f"the model file '{path}' does not exist.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as err:
        raise ModelError(f"'{path}' is not an ONNX model: {err}.") from err
    # Many other files parse as a protobuf message whose every field is unknown.
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it has no graph, or names no opset.")
    model: ir.Model = ir.from_proto(proto)
    return model
