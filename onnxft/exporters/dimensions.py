"""The symbolic dimensions that a torch export is asked for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from onnxft.errors import ModelError, near
from onnxft.manifest import BATCH

DynamicShapes = Mapping[str, Mapping[int, str]]
"""{input: {axis: name of a symbolic dimension}}"""


def check_dimensions(examples: Mapping[str, torch.Tensor], dynamic_shapes: DynamicShapes) -> dict[str, int]:
    """{symbolic dimension besides the batch: its size in the example}; ModelError where it is none."""
    sizes: dict[str, int] = {}
    for name, axes in dynamic_shapes.items():
        if name not in examples:
            raise ModelError(f"dynamic_shapes names '{name}', which is no input.{near(name, examples)}")
        for axis, dimension in axes.items():
            shape = tuple(examples[name].shape)
            if axis == 0 or dimension == BATCH:
                raise ModelError(
                    f"dynamic_shapes gives axis {axis} of '{name}' the name '{dimension}': the first axis, and only "
                    f"it, is '{BATCH}' already."
                )
            if not dimension.isidentifier():
                raise ModelError(f"'{dimension}' cannot name a dimension: use letters, digits and '_'.")
            if not 0 < axis < len(shape):
                raise ModelError(f"dynamic_shapes names axis {axis} of '{name}', which has the shape {list(shape)}.")
            if shape[axis] < 3:
                raise ModelError(
                    f"the dimension '{dimension}' has the size {shape[axis]} in the example '{name}'; it must be at "
                    "least 3, so that another size can be tried."
                )
            if sizes.setdefault(dimension, shape[axis]) != shape[axis]:
                raise ModelError(
                    f"the dimension '{dimension}' has the sizes {sizes[dimension]} and {shape[axis]} in the example; "
                    "one name is one size."
                )
    return sizes
