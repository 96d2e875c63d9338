"""The repeated blocks of a model, from the names of its parameters and their order in the graph; and its head."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from onnxft.errors import SelectionError, near
from onnxft.graph.forward import Forward
from onnxft.step.methods.layers import find_layers
from onnxft.step.methods.reading import Reading

_SEPARATOR = re.compile(r"[./]")
_NUMBER, _NUMBERED = re.compile(r"\d+"), re.compile(r".*\d")


@dataclass(frozen=True)
class Blocks:
    """What a model consists of."""

    blocks: dict[str, tuple[str, ...]]
    """{block: its parameters}, in the order of the graph."""
    head: tuple[str, ...]
    """Parameters behind the last block; of a model without blocks the last linear layer and what is behind it."""

    def last(self, count: int) -> tuple[str, ...]:
        """Parameters of the last blocks and of the head.

        Raises:
            SelectionError: there are fewer blocks.
        """
        if count > len(self.blocks):
            found = ", ".join(self.blocks) or "none"
            raise SelectionError(
                f"last:{count} asks for {count} blocks; found are {len(self.blocks)} ({found}). Ask for fewer, say "
                "what a block is (--block 'encoder.layer.*'), or name the parameters (--train)."
            )
        names = [name for block in list(self.blocks)[-count:] for name in self.blocks[block]]
        return tuple(dict.fromkeys([*names, *self.head]))


def find_blocks(forward: Forward, patterns: Sequence[str] = ()) -> Blocks:
    """Find the blocks of a model.

    A block is what the names of several parameters begin with, up to the first number: `encoder.layer.4`, `layer3.0`.
    It has relatives, which differ in the numbers alone. Modules of several layers are preferred to single layers.
    Parameters without a module (`onnx::MatMul_12`) belong to the block between whose parameters they are read.

    Args:
        forward: the model.
        patterns: globs of blocks instead, in which `*` stands for one part of a name: `encoder.layer.*`.

    Raises:
        SelectionError: a pattern matches no block.
    """
    reading = Reading.of(forward)
    names = list(reading.readers)
    weights = {t.name for t in forward.tensors if len(t.shape) > 1}
    grouped = _named(names, patterns) if patterns else _repeated(names, weights)
    ordered = sorted(grouped.items(), key=lambda item: reading.span(item[1])[::-1])
    blocks = _with_nameless(dict(ordered), reading)
    last = next(reversed(blocks.values()), ())
    nodes = [node for name in last for node in reading.readers[name]]
    head = [name for name in reading.behind(nodes) if not _owner(name, blocks)] if last else []
    if not head:
        head = _last_layer(forward, reading)
        single = [block for block, own in blocks.items() if set(own) <= set(head)]  # the head of a row of layers
        blocks = {block: own for block, own in blocks.items() if block not in single}
    return Blocks({block: tuple(own) for block, own in blocks.items()}, tuple(head))


def _repeated(names: Sequence[str], weights: Set[str]) -> dict[str, list[str]]:
    """The first way to divide names that finds blocks with relatives."""
    for depth in (2, 1):
        for component in (_NUMBER, _NUMBERED):
            found = _families(names, component, depth)
            if depth == 1:  # a row of layers: its normalisations are no blocks
                found = {block: own for block, own in found.items() if not weights.isdisjoint(own)}
            if len(found) > 1:
                return found
    return {}


def _families(names: Iterable[str], component: re.Pattern[str], least_depth: int) -> dict[str, list[str]]:
    """{block: parameters} of blocks that have relatives and at least one parameter of that depth within them."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        if block := _first(name, component):
            blocks.setdefault(block, []).append(name)
    families: dict[str, list[str]] = {}
    for block, own in blocks.items():
        if max(len(_SEPARATOR.split(name[len(block) + 1 :])) for name in own) >= least_depth:
            families.setdefault(re.sub(r"\d+", "#", block), []).append(block)
    return {b: blocks[b] for family in families.values() if len(family) > 1 for b in family}


def _first(name: str, component: re.Pattern[str]) -> str:
    """The name up to its first module that the pattern matches; "" where there is none."""
    start = 0
    for separator in _SEPARATOR.finditer(name):
        if component.fullmatch(name[start : separator.start()]):
            return name[: separator.start()]
        start = separator.end()
    return ""


def _named(names: Sequence[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """{block: parameters} of what the patterns match."""
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        depth = len(_SEPARATOR.split(pattern))
        before, modules = len(found), []
        for name in names:
            ends = [m.start() for m in _SEPARATOR.finditer(name)]
            if len(ends) < depth:
                continue
            block = name[: ends[depth - 1]]
            modules.append(block)
            parts = zip(_SEPARATOR.split(block), _SEPARATOR.split(pattern), strict=True)
            if all(fnmatch.fnmatchcase(part, glob) for part, glob in parts):
                found.setdefault(block, []).append(name)
        if len(found) == before:
            hint = near(pattern, dict.fromkeys(modules)) or " `onnxft export --dry-run` lists the names."
            raise SelectionError(f"the block '{pattern}' matches no module of the model.{hint}")
    return found


def _with_nameless(blocks: dict[str, list[str]], reading: Reading) -> dict[str, list[str]]:
    ends = {block: reading.span(own)[1] for block, own in blocks.items()}
    start = min((reading.span(own)[0] for own in blocks.values()), default=0)
    for name in reading.readers:
        first, last = reading.span([name])
        if not _SEPARATOR.search(name) and first >= start:
            block = next((b for b, end in ends.items() if last <= end), None)
            if block is not None:
                blocks[block].append(name)
    return blocks


def _owner(name: str, blocks: dict[str, list[str]]) -> str | None:
    return next((block for block, own in blocks.items() if name in own), None)


def _last_layer(forward: Forward, reading: Reading) -> list[str]:
    """The last linear layer, and what is behind it."""
    layers = [name for found in find_layers(forward) for name in found if name in reading.readers]
    if not layers:
        return []
    last = max(layers, key=lambda name: reading.span([name])[1])
    module = last.rpartition(".")[0]
    own = [name for name in reading.readers if module and name.rpartition(".")[0] == module]
    return list(dict.fromkeys([last, *own, *reading.behind(reading.readers[last][-1:])]))
