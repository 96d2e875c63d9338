"""Which operator has which rule: one dict, filled by the decorators of `grad/rules/`.

A rule is `rule(op, node, *dys) -> tuple`: it gets the builder, the forward node and the incoming
gradient of each output (None for an output that nothing differentiable reads), and returns one
gradient for each input, None where there is none. It knows nothing of broadcasting (the engine
sums), of several uses (the engine adds), of trainability (the engine prunes) or of providers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir

from onnxft.errors import GradientError

Gradients = Sequence[ir.Value | None]
Rule = Callable[..., Gradients]

_rules: dict[str, Rule] = {}
_without_gradient: dict[str, str] = {}
_not_yet: dict[str, str] = {}


def vjp(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain; the function is returned unchanged."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            _check_new(op_type)
            _rules[op_type] = rule
        return rule

    return register


def no_gradient(*op_types: str, because: str) -> None:
    """Declare operators that have no derivative by nature."""
    for op_type in op_types:
        _check_new(op_type)
        _without_gradient[op_type] = because


def not_yet(*op_types: str, because: str) -> None:
    """Declare operators that have a derivative but no rule, with what stands in the way."""
    for op_type in op_types:
        _check_new(op_type)
        _not_yet[op_type] = because


def rule_for(node: ir.Node, parameters_behind: Callable[[], Sequence[str]] = list) -> Rule:
    """The rule of a node on the path; GradientError says which of the possible reasons it is.

    `parameters_behind` gives the names of the trained parameters behind the node, for the message.
    """
    rule = _rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is not None:
        return rule
    names = parameters_behind()
    behind = f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else "a parameter"
    place = f"'{node.op_type}' (node '{node.name}', output '{node.outputs[0].name}')"
    ways_out = f"It lies between {behind} and the loss. Freeze what lies before it, or cut the graph before it"
    if node.op_type in _without_gradient:
        raise GradientError(f"{place} has no derivative by nature ({_without_gradient[node.op_type]}). {ways_out}.")
    if node.domain not in ("", "ai.onnx"):
        raise GradientError(
            f"{place} belongs to the domain '{node.domain}', outside standard ONNX. {ways_out}, or export the model "
            "without runtime optimizations."
        )
    if not onnx.defs.has(node.op_type):
        raise GradientError(f"{place} is no operator of the installed onnx {onnx.__version__}. {ways_out}.")
    because = f" ({_not_yet[node.op_type]})" if node.op_type in _not_yet else ""
    raise GradientError(f"no rule for {place} yet{because}. {ways_out}, or add a rule: see onnxft/grad/README.md.")


def supported_ops() -> tuple[str, ...]:
    """Operators with a rule, sorted."""
    return tuple(sorted(_rules))


def without_gradient() -> dict[str, str]:
    """Operators without derivative by nature, each with its reason."""
    return dict(sorted(_without_gradient.items()))


def without_rule() -> dict[str, str]:
    """Operators declared to have no rule yet, each with its reason."""
    return dict(sorted(_not_yet.items()))


def _check_new(op_type: str) -> None:
    if not onnx.defs.has(op_type):
        raise ValueError(f"'{op_type}' is no operator of ONNX (a typo?)")
    if op_type in _rules or op_type in _without_gradient or op_type in _not_yet:
        raise ValueError(f"'{op_type}' is registered twice")
