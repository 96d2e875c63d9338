"""How far a model with frozen weights in fewer bytes is from the one in float32."""

from __future__ import annotations

import numpy as np

from onnxft.arrays import Array
from onnxft.errors import ModelError
from onnxft.exporters.feeds import draw_inputs, opened, run
from onnxft.frozen_weights import RelativeError
from onnxft.graph.forward import Forward
from onnxft.manifest import BATCH


def output_error(expected: Forward, found: Forward) -> RelativeError | None:
    """The relative error of the outputs of `found` on a random batch, in inference behaviour.

    None where the model does not run on random inputs, which are indices, masks or numbers that it was not made for.
    """
    feeds = _random_inputs(expected)
    try:
        with opened(expected.infer) as session:
            wide = run(session, expected.outputs, feeds)
    except ModelError:
        return None
    with opened(found.infer) as session:
        narrow = run(session, found.outputs, feeds)
    largest = differences = values = 0.0
    for a, b in zip(wide, narrow, strict=True):
        finite = np.isfinite(a) & np.isfinite(b)  # masked logits are -∞ in both
        difference, size = np.abs(b[finite] - a[finite]), np.abs(a[finite])
        if top := float(size.max(initial=0)):
            largest = max(largest, float(difference.max(initial=0)) / top)
        differences += float(difference.sum(dtype=np.float64))
        values += float(size.sum(dtype=np.float64))
    return RelativeError(largest, differences / values if values else 0.0)


def _random_inputs(forward: Forward) -> dict[str, Array]:
    """A batch in which indices of an embedding run over all its rows."""
    feeds = draw_inputs(forward.infer.graph.inputs, {BATCH: forward.example_rows, **forward.dimensions})
    rng = np.random.default_rng(0)
    for value in forward.infer.graph.inputs:
        looked_up = [n.inputs[0] for n, i in value.uses() if n.op_type == "Gather" and i == 1]
        tables = [x.const_value.numpy() for x in looked_up if x is not None and x.const_value is not None]
        if rows := [len(table) for table in tables]:
            name = str(value.name)
            feeds[name] = rng.integers(0, min(rows), feeds[name].shape).astype(feeds[name].dtype)
    return feeds
