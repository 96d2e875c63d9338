"""The padding row of an embedding: torch never gives it a gradient, and a graph does not say so by itself."""

from __future__ import annotations

from torch import nn

from onnxft.graph.builder import PADDING_ROW
from onnxft.graph.forward import Forward


def mark_padding(forward: Forward, module: nn.Module) -> None:
    """Tell each lookup in a table of the training graph which row is its padding; the rule of Gather leaves it out."""
    places = _padding(forward, module)
    for node in forward.train.graph:
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if table is not None and table.name in places and node.attributes.get_int("axis", 0) == 0:
            node.metadata_props[PADDING_ROW] = str(places[str(table.name)])


def _padding(forward: Forward, module: nn.Module) -> dict[str, int]:
    """{table: its padding row}, where all embeddings that share a table agree on it."""
    owner = {name: t.name for t in forward.tensors for name in (t.name, *t.tied_to)}
    found: dict[str, set[int | None]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        name = owner.get(f"{prefix}.weight" if prefix else "weight")
        if isinstance(part, nn.Embedding) and name is not None:
            found.setdefault(name, set()).add(part.padding_idx)
    return {name: row for name, rows in found.items() if len(rows) == 1 and (row := next(iter(rows))) is not None}
