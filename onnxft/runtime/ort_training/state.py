"""The optimizer state inside a checkpoint file of onnxruntime-training, a flatbuffer.

The training API saves and loads the state but shows it to nobody; the schema's classes, which ONNX Runtime
ships for its tools, find it in the bytes. Read by the worker: the standard library, numpy and that package only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = "step"
_SLOTS = {"momentum0": "exp_avg", "momentum1": "exp_avg_sq"}
_STEP_FIELD = 6
"""Place of OptimizerGroup.step in its table (ort.fbs)."""


def read_state(checkpoint: bytes) -> dict[str, NDArray[Any]]:
    """{`parameter/slot`: copy} and `step`; empty for an optimizer without state."""
    state: dict[str, NDArray[Any]] = {}
    for group in _groups(bytearray(checkpoint)):
        for name, values in _moments(group):
            state[name] = np.array(values)
        if state:
            state[STEP] = np.array(group.Step(), np.int64)
    return state


def write_state(checkpoint: bytes, values: Mapping[str, NDArray[Any]]) -> bytes:
    """The checkpoint with the state replaced; it must hold a step count other than 0."""
    data = bytearray(checkpoint)
    for group in _groups(data):
        for name, moment in _moments(group):
            moment[...] = values[name]
        if values:
            place = group._tab.Pos + group._tab.Offset(_STEP_FIELD)
            struct.pack_into("<q", data, place, int(values[STEP]))
    return bytes(data)


def _groups(data: bytearray) -> Iterator[Any]:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.Checkpoint import Checkpoint

    checkpoint = Checkpoint.GetRootAs(data, 0)
    for index in range(checkpoint.OptimizerGroupsLength()):
        yield checkpoint.OptimizerGroups(index)


def _moments(group: Any) -> Iterator[tuple[str, Any]]:
    """(`parameter/slot`, float32 array that is a view into the file)"""
    for index in range(group.OptimizerStatesLength()):
        state = group.OptimizerStates(index)
        for place in range(state.MomentumsLength()):
            tensor = state.Momentums(place)
            shape = [tensor.Dims(axis) for axis in range(tensor.DimsLength())]
            slot = _SLOTS[tensor.Name().decode()]
            yield f"{state.ParamName().decode()}/{slot}", tensor.RawDataAsNumpy().view(np.float32).reshape(shape)
