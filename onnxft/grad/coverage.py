"""Which operators of a model have a rule: the answer before an export is tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.grad.registry import supported_ops, without_gradient, without_rule
from onnxft.graph.load import read_model
from onnxft.graph.opset import OPSET, is_lowered

Status = Literal["rule", "lowered", "by nature", "not yet", "other domain"]


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
    model = read_model(path)
    own = {(f.domain, f.name) for f in model.functions.values()}
    counts: Counter[tuple[str, str]] = Counter()
    lowered: set[tuple[str, str]] = set()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) not in own:
                counts[node.op_type, domain] += 1
                if is_lowered(node.op_type, domain, graph.opset_imports.get("", OPSET)):
                    lowered.add((node.op_type, domain))
    return tuple(Coverage(*key, n, *_status(*key, lowered=key in lowered)) for key, n in sorted(counts.items()))


def _status(op_type: str, domain: str, *, lowered: bool) -> tuple[Status, str]:
    if not domain and op_type in supported_ops():
        return "rule", ""
    if lowered:
        return "lowered", ""
    if domain:
        return "other domain", ""
    reason = without_gradient().get(op_type)
    return ("not yet", without_rule().get(op_type, "")) if reason is None else ("by nature", reason)
