"""What `onnxft doctor` prints: a line for each provider, and below it what would make it work."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxft.runtime.doctor import Diagnosis
    from onnxft.runtime.installation import Installation
    from onnxft.runtime.needs import Need
    from onnxft.runtime.probe import Finding

_NAME = 16
"""Characters of the column of names, the longest of which is nv-tensorrt-rtx."""
_COLUMN = " " * (2 + _NAME)
_INDENT = " " * 4


def installation_lines(found: Installation, width: int) -> list[str]:
    """Versions and devices."""
    versions = {name: version for name, version in found.versions.items() if name != "system"}
    packages = ", ".join(f"{name} {version}" for name, version in found.runtime_packages.items())
    return [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        *_wrapped(f"runtime: {packages or 'none'}", width, "  "),
        *_wrapped(f"{', '.join(found.devices)}, {found.versions['system']}", width, "  "),
    ]


def diagnosis_lines(d: Diagnosis, width: int, encoding: str) -> list[str]:
    """The provider's line, marked; where it does not work, wanted and found versions and the steps below it."""
    reason, *others = d.reasons or ("",)
    head, *rest = _wrapped(_works(d) if d.works else reason, width, _COLUMN, first=len(_COLUMN))
    lines = [f"{_mark(d.works, encoding)} {d.provider:<{_NAME}}{head}", *rest]
    lines += [line for f in d.precisions if d.works and f.reason for line in _item(f"{f.precision}: {f.reason}", width)]
    in_table = {need.problem for need in d.needs}
    told = "; ".join(reason for reason in others if reason not in in_table)
    lines += [f"{_INDENT}{line}" for line in _wrapped(told, width - len(_INDENT), "") if told]
    lines += [line for need in d.needs for line in _need(need, d.needs, width)]
    return [*lines, *(line for step in d.remedies for line in _item(f"get {step}" if step[0] != "`" else step, width))]


def problem_lines(problem: str, width: int) -> list[str]:
    """What is wrong with the environment."""
    return _wrapped(f"Problem: {problem}", width, "  ")


def _mark(works: bool, encoding: str) -> str:
    mark, plain, colour = ("✓", "+", "green") if works else ("✗", "x", "red")
    try:
        mark.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        mark = plain
    return click.style(mark, fg=colour, bold=True)


def _works(d: Diagnosis) -> str:
    times = [f"{f.precision} {f.step_ms:.2f} ms a step" for f in d.precisions if f.step_ms is not None]
    first = next(f for f in d.precisions if f.precision == "float32")
    return f"works: {', '.join(times)}{_fallen(first)}"


def _fallen(finding: Finding) -> str:
    """Nodes of the training step that another provider runs, updates apart where that is how the provider works."""
    placed = finding.placement.nodes if finding.placement else {}
    nodes = placed.get("train") or placed.get("gradients", {})
    others = {name: n for name, n in nodes.items() if finding.placement and name != finding.placement.obtained}
    if not others:
        return ""
    return "; " + ", ".join(f"{n} of {sum(nodes.values())} nodes on {name}" for name, n in others.items())


def _need(need: Need, all_needs: tuple[Need, ...], width: int) -> list[str]:
    """`CUDA  wanted 13  found none`, in columns."""
    what, wanted = (max(len(getattr(n, key)) for n in all_needs) for key in ("what", "wanted"))
    head = f"{_INDENT}{need.what:<{what}}  wanted {need.wanted:<{wanted}}  found "
    first, *rest = _wrapped(need.found, width, _INDENT * 2, first=len(head))
    return [head + first, *rest]


def _item(text: str, width: int) -> list[str]:
    first, *rest = _wrapped(text, width, _INDENT + "  ", first=len(_INDENT) + 2)
    return [f"{_INDENT}- {first}", *rest]


def _wrapped(text: str, width: int, indent: str, first: int = 0) -> list[str]:
    """Lines of at most `width`, all but the first after `indent`, commands in backquotes kept whole.

    The first line lacks the `first` characters that stand before it.
    """
    kept = [part.replace(" ", "\0") if i % 2 else part for i, part in enumerate(text.split("`"))]
    lines = textwrap.wrap(
        "`".join(kept), width, initial_indent="\1" * first, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\1", "").replace("\0", " ") for line in lines] or [""]
