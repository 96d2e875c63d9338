"""Every operator of every opset that is read is either the same, rewritten, or refused by name."""

from __future__ import annotations

import onnx
import pytest
from onnx.defs import OpSchema

from onnxft.graph import opset  # noqa: F401  (fills the registry)
from onnxft.graph.lowering.body import has_body
from onnxft.graph.lowering.registry import OPSET, rewrite_of
from onnxft.graph.lowering.unchanged import WIDENED, WITHOUT_FORM

NEWEST = onnx.defs.onnx_opset_version()
SCHEMAS = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""]
NEWER = [s for s in SCHEMAS if s.since_version > OPSET]
OPTIONAL = OpSchema.FormalParameterOption.Optional
BY_BODY = {"CausalConvWithState", "LinearAttention"}
"""Operators that have no rewrite of ours, only the body that the standard gives."""


def at(op_type: str, version: int) -> OpSchema | None:
    """The operator as a graph of that opset has it; None where it is not there yet."""
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def form(schema: OpSchema) -> tuple[object, ...]:
    """What a node writes down: inputs, outputs, and attributes with their defaults."""
    return (
        [(i.name, i.option) for i in schema.inputs],
        [(o.name, o.option) for o in schema.outputs],
        {a.name: (a.type, a.required, a.default_value.SerializeToString()) for a in schema.attributes.values()},
    )


@pytest.mark.parametrize("schema", NEWER, ids=lambda s: f"{s.name}-{s.since_version}")
def test_every_newer_operator_is_accounted_for(schema: OpSchema) -> None:
    name, version = schema.name, schema.since_version
    ways = {
        "rewritten": rewrite_of("", name, version) is not None,
        "widened": version <= WIDENED.get(name, 0),
        "refused": name in WITHOUT_FORM,
        "by body": name in BY_BODY,
    }
    assert sum(ways.values()) == 1, ways
    if ways["widened"]:
        old = at(name, OPSET)
        assert old is not None
        assert form(old) == form(schema), "it is more than its types that changed"
    if ways["by body"]:
        assert has_body(name, version)
    if ways["refused"]:
        assert at(name, OPSET) is None, "there is a form in opset 18"


def test_the_review_of_widened_operators_names_their_newest_version() -> None:
    newest = {name: max(s.since_version for s in NEWER if s.name == name) for name in {s.name for s in NEWER}}
    assert {name: newest.get(name) for name in WIDENED} == WIDENED


@pytest.mark.parametrize("version", range(13, OPSET))
def test_every_older_operator_is_accounted_for(version: int) -> None:
    """What is not rewritten only gained attributes with defaults, optional inputs at the end, or types."""
    for name in sorted({s.name for s in SCHEMAS}):
        old, new = at(name, version), at(name, OPSET)
        if old is None or new is None or old.since_version == new.since_version or old.deprecated:
            continue
        if rewrite_of("", name, old.since_version) is not None:
            continue
        (inputs, outputs, attributes), (new_inputs, new_outputs, new_attributes) = form(old), form(new)
        for (was, had), (now, has) in zip(inputs, new_inputs, strict=False):
            assert was == now, name
            assert has in (had, OPTIONAL), name
        assert all(option == OPTIONAL for _, option in new_inputs[len(inputs) :]), name
        assert new_outputs == outputs, name
        assert attributes.items() <= new_attributes.items(), name
        assert not any(new_attributes[a][1] for a in new_attributes.keys() - attributes.keys()), name


def test_no_operator_of_opset_13_was_removed() -> None:
    names = {s.name for s in SCHEMAS}
    lost = [n for n in names if (old := at(n, 13)) is not None and not old.deprecated and at(n, OPSET) is None]
    assert lost == []
