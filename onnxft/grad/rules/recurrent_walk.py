"""A walk along time, one step after another: written out for short sequences, a Scan otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import onnx_ir as ir

from onnxft.graph.builder import Op, body, split
from onnxft.graph.shapes import Dim, dims, set_dims

UNROLLED = 32
"""Up to this many steps are written out. There both forms are equally fast on the CPU provider, and a Scan takes more
than twice as long on OpenVINO; at 64 steps the CPU provider is twice as fast with a Scan, and opens it sooner."""

Slices = Mapping[str, ir.Value]
Stepped = tuple[Sequence[ir.Value], Sequence[ir.Value]]
Step = Callable[[Op, Sequence[ir.Value], Slices], Stepped]
"""(states, what is seen at this time: a slice of each sequence, and the weights) -> (new states, outputs).

States and slices are (1, batch, n) or (batch, n): a step counts axes from the end. It reads nothing else.
"""


def walk(
    op: Op, step: Step, states: Sequence[ir.Value], sequences: Slices, weights: Slices, *, backwards: bool
) -> tuple[list[ir.Value], list[ir.Value]]:
    """The states after the last step, and the outputs of all steps in order of time.

    `states` (1, batch, n) each; `sequences` (time, batch, n) each, at least one; outputs (time, batch, n) each.
    """
    time = dims(next(iter(sequences.values())))[0]
    if isinstance(time, int) and time <= UNROLLED:
        return _unrolled(op, step, states, sequences, weights, time, backwards=backwards)
    return _scan(op, step, states, sequences, weights, time, backwards=backwards)


def _unrolled(
    op: Op, step: Step, states: Sequence[ir.Value], sequences: Slices, weights: Slices, time: int, *, backwards: bool
) -> tuple[list[ir.Value], list[ir.Value]]:
    parts = {name: split(op, x, time, 0) for name, x in sequences.items()}
    outputs: list[Sequence[ir.Value]] = []
    for t in reversed(range(time)) if backwards else range(time):
        states, found = step(op, states, {name: part[t] for name, part in parts.items()} | dict(weights))
        outputs.append(found)
    if backwards:
        outputs.reverse()
    return list(states), [op.Concat(*parts, axis=0) if time > 1 else parts[0] for parts in zip(*outputs, strict=True)]


def _scan(
    op: Op, step: Step, states: Sequence[ir.Value], sequences: Slices, weights: Slices, time: Dim, *, backwards: bool
) -> tuple[list[ir.Value], list[ir.Value]]:
    """The weights travel as states that stay: OpenVINO's provider cannot open a body that reads values around it."""
    states = [op.Squeeze(s, [0]) for s in states]
    names, first = [*weights, *sequences], len(states) + len(weights)
    outputs: list[ir.Value] = []

    def write(op: Op, *inputs: ir.Value) -> list[ir.Value]:
        after, found = step(op, inputs[: len(states)], dict(zip(names, inputs[len(states) :], strict=True)))
        # A value that enters the body or leaves it as a state must not leave it a second time.
        outputs.extend(op.Identity(y) if y in (*inputs, *after) else y for y in found)
        return [*after, *(op.Identity(w) for w in inputs[len(states) : first]), *outputs]

    formal = [*((s, dims(s)) for s in (*states, *weights.values())), *((x, dims(x)[1:]) for x in sequences.values())]
    graph = body(op, write, formal)
    results = op.Scan(
        *states,
        *weights.values(),
        *sequences.values(),
        body=graph,
        num_scan_inputs=len(sequences),
        scan_input_directions=[int(backwards)] * len(sequences),
        scan_output_directions=[int(backwards)] * len(outputs),
        _outputs=first + len(outputs),
    )
    made = list(cast(Sequence[ir.Value], results))
    for value, inner in zip(made, graph.outputs, strict=True):
        value.type = inner.type
    for final, (_, shape) in zip(made[:first], formal[:first], strict=True):
        set_dims(final, shape)
    for value, inner in zip(made[first:], outputs, strict=True):
        set_dims(value, [time, *dims(inner)])
    return [op.Unsqueeze(final, [0]) for final in made[: len(states)]], made[first:]
