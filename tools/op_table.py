"""Print the Markdown table of supported operators, made from the registry of rules.

`python tools/op_table.py` prints it; `--write` puts it between the markers of README.md; `--check`
ends with 1 if the README does not hold it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

import onnxft.grad.rules  # noqa: F401  (fills the registry)
from onnxft.grad.registry import rule_for, supported_ops, without_gradient, without_rule
from onnxft.graph.lowering.registry import MICROSOFT, rewritten
from onnxft.graph.opset import is_lowered

START, END = "<!-- op-table -->", "<!-- /op-table -->"
README = Path(__file__).parent.parent / "README.md"


def table() -> str:
    """One row for each family of rules, for what is lowered, and for each reason to have no gradient or no rule."""
    families: dict[str, list[str]] = defaultdict(list)
    for op_type in supported_ops():
        rule = rule_for(ir.Node("", op_type, inputs=[]))
        families[rule.__module__.rpartition(".")[2]].append(op_type)
    rows = [f"| {family} | {_listed(ops)} |" for family, ops in sorted(families.items())]
    rows.append(f"| lowered to others first | {_listed(_lowered())} |")
    for kind, declared in [("no gradient", without_gradient()), ("not yet", without_rule())]:
        reasons: dict[str, list[str]] = defaultdict(list)
        for op_type, reason in declared.items():
            reasons[reason].append(op_type)
        rows += [f"| {kind}: {reason} | {_listed(ops)} |" for reason, ops in sorted(reasons.items())]
    return "\n".join(["| Family | Operators |", "|---|---|", *rows])


def _lowered() -> list[str]:
    """Operators without a rule that the conversion to opset 18 writes by others, those of ONNX Runtime last."""
    newest = onnx.defs.onnx_opset_version()
    declared = {*supported_ops(), *without_gradient(), *without_rule()}
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} - declared
    fused = [f"{MICROSOFT}.{op_type}" for op_type in rewritten(MICROSOFT)]
    return [*sorted(op_type for op_type in standard if is_lowered(op_type, "", newest)), *fused]


def replaced(text: str, new: str) -> str | None:
    """`text` with `new` between the markers, None if it has no markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return f"{before}{START}\n{new}\n{END}{after}" if start and end else None


def main(arguments: Sequence[str] | None = None, readme: Path = README) -> int:
    """Exit code: 0 if all is well."""
    parser = argparse.ArgumentParser(description="Table of the operators that onnxft differentiates.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="end with 1 if the README is stale")
    action.add_argument("--write", action="store_true", help="update the README")
    options = parser.parse_args(arguments)
    if not (options.check or options.write):
        print(table())
        return 0
    text = readme.read_text(encoding="utf-8")
    fresh = replaced(text, table())
    if fresh is None:
        print(f"{readme.name} has no markers {START} and {END}: put them where the table belongs", file=sys.stderr)
        return 1
    if options.write:
        readme.write_text(fresh, encoding="utf-8")
        return 0
    if fresh != text:
        print(f"the operator table of {readme.name} is stale: run `python tools/op_table.py --write`", file=sys.stderr)
        return 1
    return 0


def _listed(ops: Sequence[str]) -> str:
    return " ".join(f"`{op_type}`" for op_type in ops)


if __name__ == "__main__":
    sys.exit(main())
