"""Methods that train a part of what is there: names of parameters."""

from __future__ import annotations

import glob
import re

import onnx_ir as ir

from onnxft.errors import SelectionError
from onnxft.graph.forward import Forward
from onnxft.step.methods.blocks import Blocks
from onnxft.step.methods.reading import Reading

_SCALE_AND_SHIFT = {
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}  # fmt: skip
"""{operator of a normalisation: inputs that are trained}"""
_BIASES = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2} | {op: inputs[1] for op, inputs in _SCALE_AND_SHIFT.items()}
"""{operator: input that is added}"""
_BIAS_NAME = re.compile(r"(.*_)?bias(_[ih]h_l\d+(_reverse)?)?")
_NORM_NAME = re.compile(r".*norm.*|(bn|ln|gn)(_?\w)?\d*(_\w+)?", re.IGNORECASE)


def preset_patterns(forward: Forward, name: str, count: int, blocks: Blocks) -> list[str]:
    """Globs of the parameters that a preset trains.

    Args:
        forward: the model.
        name: `full`, `head`, `last`, `bias` or `norm`.
        count: blocks of `last`.
        blocks: of the model.

    Raises:
        SelectionError: the model has nothing of that kind.
    """
    match name:
        case "full":
            return ["*"]
        case "head":
            found = list(blocks.head)
        case "last":
            found = list(blocks.last(count))
        case "bias":
            found = _biases(forward)
        case _:
            found = _norms(forward)
    if not found:
        raise SelectionError(
            f"the method '{name}' finds nothing to train in '{forward.name}'. Name the parameters instead (--train); "
            "`onnxft export --dry-run` lists them."
        )
    return [glob.escape(n) for n in found]


def _biases(forward: Forward) -> list[str]:
    """What is added to data, one number for each feature: by its place in the graph, or its name."""
    reading = Reading.of(forward)
    return [
        t.name
        for t in forward.tensors
        if t.name in reading.readers
        and (_BIAS_NAME.fullmatch(_last(t.name)) or (len(t.shape) == 1 and _is_added(forward, t.name, reading)))
    ]


def _is_added(forward: Forward, name: str, reading: Reading) -> bool:
    value = forward.train.graph.initializers[name]
    return any(
        _BIASES.get(node.op_type) == index or (node.op_type == "Add" and any(reading.is_data(x) for x in node.inputs))
        for node, index in value.uses()
    )


def _norms(forward: Forward) -> list[str]:
    """Scales and shifts of normalisations: by their place in the graph, or the name of their module."""
    reading = Reading.of(forward)
    return [
        t.name
        for t in forward.tensors
        if t.name in reading.readers
        and (_is_scale_or_shift(forward.train.graph.initializers[t.name]) or _in_norm(t.name, len(t.shape)))
    ]


def _is_scale_or_shift(value: ir.Value) -> bool:
    return any(index in _SCALE_AND_SHIFT.get(node.op_type, ()) for node, index in value.uses())


def _in_norm(name: str, rank: int) -> bool:
    *_, module, _ = ["", *re.split(r"[./]", name)]
    return rank <= 1 and _NORM_NAME.fullmatch(module) is not None


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]
