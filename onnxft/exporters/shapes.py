"""Dimensions that shape inference leaves unknown, found by running the graph at several sizes.

After a Reshape to -1 or a Slice with computed ends, inference gives up. Here each value's shape is
read at every corner of a box of sizes, and at two more points; a dimension then is what explains all
of them: a number, `batch`, or a sum of products such as `12*batch` or `batch*sequence + 1`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.arrays import Array
from onnxft.errors import ModelError
from onnxft.exporters.feeds import Sizes, draw_inputs, fit_inputs, opened, run
from onnxft.graph.normalize import make_reshapes_static
from onnxft.graph.shapes import Dim, dims, set_dims
from onnxft.manifest import BATCH, dimension_size

Shapes = Mapping[str, tuple[Dim, ...]]
"""{value: its dimensions}"""

_MAX_SYMBOLS = 5
"""A box with more dimensions has too many corners."""


def complete_shapes(model: ir.Model, sizes: Sizes, examples: Mapping[str, Array] | None = None) -> Shapes:
    """Give every value of the graph a shape in the symbolic dimensions of its inputs, and return those measured.

    Nothing is run where inference left no float value and no index unknown.

    Args:
        model: in the internal form; its values get their shapes, and its Reshapes constant targets.
        sizes: {symbolic dimension besides the batch: a size that the model takes}
        examples: inputs that the model takes, in order; None draws some.

    Raises:
        ModelError: the graph does not run, or a shape is not what inference says.
    """
    names = (BATCH, *sizes)
    values = [v for node in model.graph for v in node.outputs if v.name and not _is_known(v, names)]
    found: Shapes = {}
    if any(_matters(v) and not _is_composed(v, names) for v in values):
        tensors = [v for v in values if not isinstance(v.type, ir.SequenceType | ir.OptionalType)]
        found = _measure(model, tensors, sizes, examples)
    apply_shapes(model, found, names)
    return found


def apply_shapes(model: ir.Model, found: Shapes, names: Sequence[str]) -> None:
    """Set measured shapes on the values of a graph, and constant targets on the Reshapes that they determine."""
    for node in model.graph:
        for value in node.outputs:
            if (name := str(value.name)) in found:
                set_dims(value, found[name])
    make_reshapes_static(model.graph, names)
    common.RemoveUnusedNodesPass()(model)


def _matters(value: ir.Value) -> bool:
    """Whether a rule may ask for the shape: of a float, or of what picks and places floats."""
    if value.dtype is None or value.dtype.is_floating_point():
        return True
    return any(node.op_type.startswith(("Gather", "Scatter")) and index == 1 for node, index in value.uses())


def _is_known(value: ir.Value, names: Sequence[str]) -> bool:
    """Whether the shape is made of numbers and input dimensions; other names come from inferences that do not agree."""
    return value.shape is not None and all(isinstance(d, int) or d in names for d in dims(value))


def _is_composed(value: ir.Value, names: Sequence[str]) -> bool:
    """Whether the shape is known but for the spelling of its sums and products, which a measurement makes one."""
    sizes = dict.fromkeys(names, 1)
    return value.shape is not None and all(d is not None and dimension_size(d, sizes) is not None for d in dims(value))


def _measure(
    model: ir.Model, values: Sequence[ir.Value], sizes: Sizes, examples: Mapping[str, Array] | None
) -> dict[str, tuple[Dim, ...]]:
    names = (BATCH, *sizes)
    if len(names) > _MAX_SYMBOLS:
        raise ModelError(
            f"the inputs have {len(names)} symbolic dimensions ({', '.join(names)}), and not all shapes can be "
            f"inferred: export the model with at most {_MAX_SYMBOLS}."
        )
    probe = model.clone()
    by_name = {v.name: v for node in probe.graph for v in node.outputs}
    outputs = [f"onnxft.shape.{i}" for i in range(len(values))]
    probe.graph.outputs.clear()
    for value, output in zip(values, outputs, strict=True):
        node = ir.node("Shape", [by_name[value.name]])
        node.outputs[0].name, node.outputs[0].type = output, ir.TensorType(ir.DataType.INT64)
        probe.graph.append(node)
        probe.graph.outputs.append(node.outputs[0])
    inputs = model.graph.inputs

    def inputs_at(point: Sizes) -> dict[str, Array]:
        return draw_inputs(inputs, point) if examples is None else fit_inputs(examples, inputs, point)

    with opened(probe) as session:
        for attempt, points in enumerate(boxes := [_small(names), _near(sizes)]):
            points.append({BATCH: 2, **sizes})
            try:
                runs = [run(session, outputs, inputs_at(point)) for point in points]
                break
            except ModelError:
                if attempt == len(boxes) - 1 or not sizes:
                    raise
    prefix = "dim_"
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    opaque: dict[tuple[int, ...], str] = {}
    shapes: dict[str, tuple[Dim, ...]] = {}
    for i, value in enumerate(values):
        measured = [tuple(int(d) for d in shape) for shape in np.stack([r[i] for r in runs]).T]
        explained = [_explain(row, points, names) for row in measured]
        # What nothing explains has a name of its own, the same where it was the same at every point.
        named = [
            opaque.setdefault(row, f"{prefix}{len(opaque)}") if d is None else d
            for d, row in zip(explained, measured, strict=True)
        ]
        _check_consistent(value, named, names)
        shapes[str(value.name)] = tuple(named)
    return shapes


def _small(names: Sequence[str]) -> list[dict[str, int]]:
    """Corners between (2, 5, 11, ...) and (3, 7, 13, ...), and one point outside: all sizes differ, most are prime."""
    pairs = [(2, 3), (5, 7), (11, 13), (17, 19), (23, 29)][: len(names)]
    corners = [dict(zip(names, corner, strict=True)) for corner in itertools.product(*pairs)]
    return [*corners, {name: 2 * high + 3 for name, (_, high) in zip(names, pairs, strict=True)}]


def _near(sizes: Sizes) -> list[dict[str, int]]:
    """The same at and below the given sizes, for models that have a smallest one, as convolutions do."""
    pairs = [(2, 3), *((max(1, size // 2 + i), size) for i, size in enumerate(sizes.values()))]
    corners = [dict(zip((BATCH, *sizes), corner, strict=True)) for corner in itertools.product(*pairs)]
    return [*corners, {BATCH: 7, **{n: max(1, size * 3 // 4 + i) for i, (n, size) in enumerate(sizes.items())}}]


def _explain(measured: Sequence[int], points: Sequence[Sizes], names: Sequence[str]) -> Dim:
    """The number or sum of products of dimensions that was measured at every point; None where there is none.

    The corners determine the coefficients of all products, the points after them confirm.
    """
    if len(set(measured)) == 1:
        return measured[0]
    products = [s for n in range(len(names), -1, -1) for s in itertools.combinations(names, n)]
    terms = np.array([[math.prod(point[n] for n in product) for product in products] for point in points], float)
    corners = len(products)
    try:
        solved = np.rint(np.linalg.solve(terms[:corners], np.array(measured[:corners], float))).astype(int)
    except np.linalg.LinAlgError:  # a size of 1 leaves no room for two
        return None
    if not np.array_equal(terms.astype(int) @ solved, measured):
        return None
    parts = [_spell(int(c), product) for c, product in zip(solved, products, strict=True) if c]
    return "".join(parts).removeprefix(" + ")


def _spell(coefficient: int, product: Sequence[str]) -> str:
    """` + 12*batch`"""
    number = abs(coefficient)
    factors = [str(number)] if number != 1 or not product else []
    return f" {'-' if coefficient < 0 else '+'} {'*'.join([*factors, *product])}"


def _check_consistent(value: ir.Value, named: Sequence[Dim], names: Sequence[str]) -> None:
    if value.shape is None:
        return
    inferred = dims(value)
    wrong = [(a, b) for a, b in zip(inferred, named, strict=False) if (isinstance(a, int) or a in names) and a != b]
    if wrong or len(inferred) != len(named):
        raise ModelError(
            f"'{value.name}' has the shape {list(named)} when it is run, where shape inference says {list(inferred)}. "
            "Please report this with the model."
        )
