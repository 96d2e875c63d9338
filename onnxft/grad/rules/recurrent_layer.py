"""What LSTM, GRU and RNN have in common: directions, padding, and what is formed outside of the walk along time.

T steps, B rows, D directions, I inputs, H hidden, G = gates * H.
X (T, B, I), W (D, G, I), R (D, G, H), bias (D, 2G), states (D, B, H), peepholes (D, 3H); Y (T, D, B, H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients
from onnxft.grad.rules.recurrent_walk import Slices
from onnxft.graph.builder import Op, cast_like, constant, reshape, slice_axis, swap_last_two, zeros_like
from onnxft.graph.shapes import Dim, dims, set_dims, static_dims

Cell = Callable[[Op, "Direction"], "Found"]
"""The gradients of one direction of a layer."""

_END = 2**63 - 1
_ORDER = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class Direction:
    """One direction of a layer: its inputs, its hidden states, and the incoming gradients."""

    backwards: bool
    """Whether it reads from the last step to the first."""
    activations: tuple[str, ...]
    x: ir.Value
    """(T, B, I)"""
    w: ir.Value
    """(G, I)"""
    r: ir.Value
    """(G, H)"""
    bias: ir.Value | None
    """(2G,): that of x, then that of the hidden state"""
    h0: ir.Value
    """(1, B, H)"""
    c0: ir.Value
    """(1, B, H)"""
    p: ir.Value | None
    """(3H,)"""
    h: ir.Value
    """(T, B, H), h0 at steps of padding"""
    valid: ir.Value | None
    """(T, B, 1), false at steps of padding; None where there are none"""
    dy: ir.Value | None
    """(T, B, H), 0 at steps of padding"""
    dh: ir.Value
    """(1, B, H), of the last hidden state"""
    dc: ir.Value
    """(1, B, H), of the last cell state"""

    def before(self, op: Op, states: ir.Value, first: ir.Value) -> ir.Value:
        """For each step the state that it starts from; `states` (T, B, H), `first` (1, B, H)."""
        if dims(states)[0] == 1:
            return first
        if self.backwards:
            found = op.Concat(op.Slice(states, [1], [_END], [0]), first, axis=0)
        else:
            found = op.Concat(first, op.Slice(states, [0], [-1], [0]), axis=0)
        set_dims(found, dims(states))
        return found

    def pad(self, op: Op, x: ir.Value, padding: float | ir.Value) -> ir.Value:
        """`x` (T, B, n) with `padding` at steps of padding."""
        return _pad(op, self.valid, x, padding)

    def incoming(self) -> dict[str, ir.Value]:
        """`dy`, where Y is read."""
        return {} if self.dy is None else {"dy": self.dy}

    def bias_gradient(self, op: Op, dz: ir.Value, dq: ir.Value) -> ir.Value | None:
        """(2G,) from the gradients (T, B, G) of x W^T and h' R^T; nothing where there is no bias."""
        if self.bias is None:
            return None
        of_x = sum_steps(op, dz)
        return op.Concat(of_x, of_x if dq is dz else sum_steps(op, dq), axis=0)

    def kept(self, op: Op) -> dict[str, ir.Value]:
        """`kept` (T, B, 1): 1 at steps of padding, which hand dh on as it is."""
        return {} if self.valid is None else {"kept": cast_like(op, op.Not(self.valid), self.x)}


@dataclass(frozen=True)
class Found:
    """The gradients of one direction."""

    dz: ir.Value
    """(T, B, G), of x W^T"""
    dr: ir.Value
    """(G, H)"""
    dbias: ir.Value | None
    """(2G,)"""
    dh0: ir.Value
    """(1, B, H)"""
    dc0: ir.Value | None = None
    """(1, B, H)"""
    dp: ir.Value | None = None
    """(3H,)"""


def differentiate(
    op: Op, node: ir.Node, dys: Sequence[ir.Value | None], cell: Cell, activations: Sequence[Sequence[str]]
) -> Gradients:
    """The gradients of all inputs, direction by direction.

    `activations` are the tuples of activations that `cell` covers, the default first.
    """
    directions = _directions(op, node, dys, activations)
    found = [cell(op, d) for d in directions]
    pairs = list(zip(found, directions, strict=True))
    dx = [op.MatMul(f.dz, d.w) for f, d in pairs]
    gradients = (
        op.Add(*dx) if len(dx) > 1 else dx[0],
        _stack(op, [weight_gradient(op, f.dz, d.x) for f, d in pairs]),
        _stack(op, [f.dr for f in found]),
        _stack(op, [f.dbias for f in found]),
        None,
        _join(op, [f.dh0 for f in found]),
        _join(op, [f.dc0 for f in found]),
        _stack(op, [f.dp for f in found]),
    )
    return [None if x is None else dx for x, dx in zip(node.inputs, gradients, strict=False)]


def weight_gradient(op: Op, dz: ir.Value, x: ir.Value) -> ir.Value:
    """z = x W^T      dW = sum over steps and rows of dz^T x;  dz (T, B, G), x (T, B, I) -> (G, I)"""
    return op.Gemm(_rows(op, dz), _rows(op, x), transA=1)


def times_weight(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
    """x W^T;  x (T, B, I), w (G, I) -> (T, B, G)"""
    z = op.MatMul(x, swap_last_two(op, w))
    set_dims(z, [*dims(x)[:2], dims(w)[0]])
    return z


def sum_steps(op: Op, dz: ir.Value) -> ir.Value:
    """(T, B, G) -> (G,)"""
    return op.ReduceSum(dz, [0, 1], keepdims=0)


def arriving(op: Op, dh: ir.Value, at: Slices) -> ir.Value:
    """dh of a step: from the next one, and from Y."""
    return op.Add(dh, at["dy"]) if "dy" in at else dh


def handed_on(op: Op, dz: ir.Value, dh: ir.Value, at: Slices) -> ir.Value:
    """dh' = dz R, and dh' = dh at padding, where dz = 0."""
    before = op.MatMul(dz, at["r"])
    return op.Add(before, op.Mul(dh, at["kept"])) if "kept" in at else before


def sigmoid_slope(op: Op, y: ir.Value) -> ir.Value:
    """y (1 - y)"""
    return op.Mul(y, op.Sub(1.0, y))


def _directions(
    op: Op, node: ir.Node, dys: Sequence[ir.Value | None], activations: Sequence[Sequence[str]]
) -> list[Direction]:
    _refuse(node)
    order = _ORDER[node.attributes.get_string("direction", "forward")]
    names = _activations(node, len(order), activations)
    x, w, r, bias, lens, h0, c0, p = (*node.inputs, *(None,) * 8)[:8]
    dy, dh, dc = (*dys, *(None,) * 3)[:3]
    assert x is not None and w is not None and r is not None
    time, batch = dims(x)[:2]
    (hidden,) = static_dims(r, 2)
    y = _hidden_states(node, [time, len(order), batch, hidden], x)
    valid = filled = None
    if lens is not None:
        valid, filled = _valid(op, x, lens), op.Greater(op.Unsqueeze(lens, [0, 2]), 0)
        x = _pad(op, valid, x, 0.0)  # what lies there counts for nothing, not even if it is infinite

    def of(value: ir.Value, axis: int, d: int) -> ir.Value:
        return op.Squeeze(value, [axis]) if len(order) == 1 else op.Gather(value, d, axis=axis)

    def maybe(value: ir.Value | None, axis: int, d: int) -> ir.Value | None:
        return None if value is None else of(value, axis, d)

    found = []
    for d, backwards in enumerate(order):
        h = of(y, 1, d)
        set_dims(h, [time, batch, hidden])
        zeros = op.Slice(h, [0], [1], [0])
        set_dims(zeros, [1, batch, hidden])
        zeros = zeros_like(op, zeros)
        first, cell, dh_last, dc_last = (
            zeros if v is None else slice_axis(op, v, 0, d, d + 1) for v in (h0, c0, dh, dc)
        )
        dy_own = maybe(dy, 1, d)
        made = Direction(
            backwards=backwards,
            activations=names[d],
            x=x,
            w=of(w, 0, d),
            r=of(r, 0, d),
            bias=maybe(bias, 0, d),
            h0=first,
            c0=cell,
            p=maybe(p, 0, d),
            h=_pad(op, valid, h, first),
            valid=valid,
            dy=None if dy_own is None else _pad(op, valid, dy_own, 0.0),
            # The last states of a row without steps are 0 in ONNX Runtime, whatever the initial ones are.
            dh=_pad(op, filled, dh_last, 0.0),
            dc=_pad(op, filled, dc_last, 0.0),
        )
        found.append(made)
    return found


def _refuse(node: ir.Node) -> None:
    """GradientError for the attributes that change the mathematics in ways no rule covers."""
    place = f"{node.op_type} '{node.name}'"
    if node.attributes.get_int("layout", 0) != 0:
        raise GradientError(
            f"{place} has layout = 1, batch first; its rule covers layout 0. Put a Transpose before and behind it: "
            "few runtimes run layout 1 anyway."
        )
    if "clip" in node.attributes:
        raise GradientError(
            f"{place} has clip = {node.attributes.get_float('clip')}; its rule does not cover clipped gates yet. "
            "Export the model without it."
        )


def _activations(node: ir.Node, directions: int, covered: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The activations of each direction, in the spelling of ONNX."""
    size = len(covered[0])
    names = list(node.attributes.get_strings("activations", [*covered[0]] * directions) or [])
    found = []
    for d in range(directions):
        given = names[size * d : size * (d + 1)]
        own = tuple(name.capitalize() for name in given)
        if own not in covered:
            known = " or ".join(", ".join(c) for c in covered)
            raise GradientError(
                f"{node.op_type} '{node.name}' has the activations {', '.join(given)}; its rule covers {known}, and no "
                "others yet. Freeze what lies before it, or train with one of those."
            )
        found.append(own)
    return found


def _hidden_states(node: ir.Node, shape: Sequence[Dim], like: ir.Value) -> ir.Value:
    """Y of the node, which is named here if the model reads the last states alone and so leaves it out."""
    y = node.outputs[0]
    if not y.name:
        y.name = f"{next(v.name for v in node.outputs if v.name)}.all_steps"
    y.type = like.type
    known = shape if y.shape is None else dims(y)
    set_dims(y, [k if isinstance(k, int) else d for k, d in zip(known, shape, strict=True)])
    return y


def _valid(op: Op, x: ir.Value, lens: ir.Value) -> ir.Value:
    """(T, B, 1), true at the first `lens` steps of each row; `lens` (B,)."""
    time, batch = dims(x)[:2]
    if isinstance(time, int):
        steps = constant(op, [[[t]] for t in range(time)], lens)
    else:
        steps = op.Range(0, op.Squeeze(op.Shape(x, start=0, end=1), [0]), 1)
        steps = cast_like(op, op.Unsqueeze(steps, [1, 2]), lens)
    valid = op.Less(steps, op.Unsqueeze(lens, [0, 2]))
    set_dims(valid, [time, batch, 1])
    return valid


def _pad(op: Op, valid: ir.Value | None, x: ir.Value, padding: float | ir.Value) -> ir.Value:
    if valid is None:
        return x
    found = op.Where(valid, x, padding)
    set_dims(found, dims(x))
    return found


def _rows(op: Op, x: ir.Value) -> ir.Value:
    """(T, B, n) -> (T * B, n)"""
    time, batch, n = dims(x)
    return reshape(op, x, [time * batch if isinstance(time, int) and isinstance(batch, int) else None, n])


def _stack(op: Op, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """A new first axis, of directions; None where there is nothing."""
    return _join(op, [None if part is None else op.Unsqueeze(part, [0]) for part in parts])


def _join(op: Op, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    known = [part for part in parts if part is not None]
    return None if not known else known[0] if len(known) == 1 else op.Concat(*known, axis=0)
