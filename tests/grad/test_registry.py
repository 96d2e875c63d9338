"""The registry: complete in its tests, and three messages for three reasons."""

from __future__ import annotations

from collections import Counter

import cases
import onnx
import onnx_ir as ir
import pytest

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.errors import GradientError
from onnxft.grad.registry import no_gradient, not_yet, rule_for, supported_ops, vjp, without_gradient, without_rule
from onnxft.graph.opset import is_lowered


def node_of(op_type, domain=""):
    output = ir.Value(name="boxes")
    return ir.Node(domain, op_type, [ir.Value(name="x")], outputs=[output], name="det/node")


def test_every_rule_has_a_case_and_every_case_a_rule():
    # Gelu is newer than opset 18: the step makes it and writes it as arithmetic again, see step/test_gelu.
    assert {case.op for case in cases.ALL} | {"Gelu"} == set(supported_ops())


def test_names_of_cases_are_unique():
    names = [case.name for case in cases.ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("declared", [without_gradient, without_rule])
def test_every_declared_operator_has_a_reason(declared):
    assert declared()
    for op_type, reason in declared().items():
        assert reason.split(), op_type


def test_every_operator_of_the_standard_is_in_exactly_one_list():
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    lists = [set(supported_ops()), set(without_gradient()), set(without_rule())]
    found = Counter(op_type for ops in lists for op_type in ops)
    assert {op_type: n for op_type, n in found.items() if n > 1} == {}
    assert found.keys() <= standard
    newest = onnx.defs.onnx_opset_version()
    assert [op_type for op_type in standard - found.keys() if not is_lowered(op_type, "", newest)] == []


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (node_of("NonMaxSuppression"), ["no derivative by nature", "looks things up"]),
        (node_of("Scan"), ["no rule for 'Scan'", "yet (its body is a graph of its own", "add a rule: see"]),
        (node_of("SwiGLU"), ["no rule for 'SwiGLU'", "'boxes') yet. It", "add a rule: see onnxft/grad/README.md"]),
        (node_of("Relux"), ["no operator of the installed onnx", onnx.__version__]),
        (node_of("FusedConv", "com.microsoft"), ["domain 'com.microsoft'", "without runtime optimizations"]),
    ],
    ids=lambda value: value.op_type if isinstance(value, ir.Node) else "",
)
def test_message_names_operator_node_output_and_parameters(node, words):
    with pytest.raises(GradientError) as caught:
        rule_for(node, lambda: ["conv1.weight", "conv1.bias"])
    for word in [f"'{node.op_type}'", "'det/node'", "'boxes'", "'conv1.weight' and 1 more", "Freeze", *words]:
        assert word in str(caught.value)


def test_a_typo_fails_at_import():
    with pytest.raises(ValueError, match="'Relux' is no operator"):
        vjp("Relux")(lambda op, node, dy: (dy,))
    with pytest.raises(ValueError, match="'Relux' is no operator"):
        no_gradient("Relux", because="a test")
    with pytest.raises(ValueError, match="'Relux' is no operator"):
        not_yet("Relux", because="a test")


def test_a_second_rule_is_refused():
    with pytest.raises(ValueError, match="'Add' is registered twice"):
        vjp("Add")(lambda op, node, dy: (dy, dy))
    with pytest.raises(ValueError, match="'ArgMax' is registered twice"):
        vjp("ArgMax")(lambda op, node, dy: (dy,))
    with pytest.raises(ValueError, match="'Scan' is registered twice"):
        vjp("Scan")(lambda op, node, dy: (dy,))
    with pytest.raises(ValueError, match="'Add' is registered twice"):
        not_yet("Add", because="a test")
