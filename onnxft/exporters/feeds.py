"""Inputs to run a graph on: what a model computes from them does not matter, only that it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxft.arrays import Array
from onnxft.errors import ModelError, ProviderError
from onnxft.graph.io import save_inference
from onnxft.graph.shapes import dims
from onnxft.runtime.providers import first_line
from onnxft.runtime.sessions import open_session

Sizes = Mapping[str, int]


def draw_inputs(inputs: Sequence[ir.Value], sizes: Sizes, seed: int = 0) -> dict[str, Array]:
    """{input: array} with symbolic dimensions of the given sizes.

    Floats are standard normal. Integers and booleans are 0 or 1, which every index, mask and token type
    accepts, and begin with 1 in each row, so that no mask hides a whole row.
    """
    rng = np.random.default_rng(seed)
    return {str(v.name): _draw(rng, v, sizes) for v in inputs}


def fit_inputs(examples: Mapping[str, Array], inputs: Sequence[ir.Value], sizes: Sizes) -> dict[str, Array]:
    """{input: the array of `examples` with symbolic dimensions of the given sizes}, in the order of the examples.

    The end of each axis stays, since there stands what closes a text; what is more begins anew.
    """
    found = {}
    for value, array in zip(inputs, examples.values(), strict=True):
        for axis, dim in enumerate(dims(value)):
            size = dim if isinstance(dim, int) else sizes[str(dim)]
            if size != array.shape[axis]:
                array = np.take(array, np.arange(array.shape[axis] - size, array.shape[axis]), axis, mode="wrap")
        found[str(value.name)] = array
    return found


def _draw(rng: np.random.Generator, value: ir.Value, sizes: Sizes) -> Array:
    assert value.dtype is not None
    shape = [d if isinstance(d, int) else sizes[str(d)] for d in dims(value)]
    dtype = value.dtype.numpy()
    if value.dtype.is_floating_point():
        return np.asarray(rng.standard_normal(shape), dtype)
    drawn = rng.integers(0, 2, shape)
    if len(shape) > 1:
        drawn[:, 0] = 1
    return np.asarray(drawn, dtype)


@contextmanager
def opened(model: ir.Model) -> Iterator[Any]:
    """An open session of a graph, on the CPU."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        save_inference(model, path)
        with opened_file(path) as session:
            yield session


@contextmanager
def opened_file(path: Path) -> Iterator[Any]:
    """An open session of an ONNX file, on the CPU; ModelError where the runtime refuses it."""
    try:
        opened = open_session(path)
    except ProviderError as err:
        raise ModelError(f"the runtime refuses the model: {err}") from err
    try:
        yield opened.session
    finally:
        opened.close()


def run(session: Any, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    """Values of the outputs; ModelError with the runtime's reason where it cannot run."""
    try:
        values: list[Array] = session.run(list(outputs), dict(feeds))
    except Exception as err:  # the runtime raises its own classes, one a status code
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        raise ModelError(f"the model does not run with inputs of the shapes {shapes}: {first_line(err)}.") from err
    return values
