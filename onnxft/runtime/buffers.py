"""Tensors between steps as buffers that graphs are bound to, and what every way of keeping them is like."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.manifest import GraphFile, Port
from onnxft.runtime.execution import Execution
from onnxft.runtime.keys import Family, family, key_of, written
from onnxft.runtime.providers import provider, runtime
from onnxft.runtime.sessions import OpenSession, run_options

Device = tuple[str, int]
"""The runtime's name of a memory, and the index of the device."""
CPU: Device = ("cpu", 0)


def device_of(asked: Execution) -> Device:
    """Where parameters and state of a request live."""
    memory = provider(asked.provider).memory
    return CPU if memory == "cpu" else (memory, asked.device or 0)


class Runner(Protocol):
    """One open graph over a store."""

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once: tensors of the store move on, the other outputs are returned as OrtValues."""


class BoundStore:
    """Binding `bound`: a second buffer for each tensor that some graph may not write in place; the two of a family
    change places after a run that wrote it.

    Accumulators have a third, constant buffer of zeros that stands for 'nothing accumulated yet'.
    """

    def __init__(self, initial: Mapping[str, Array], device: Device = CPU, fixed: Collection[str] = ()) -> None:
        """Take the tensors over into the memory of `device`; accumulators begin as zeros.

        The keys that are `fixed` have one buffer alone; see `always_in_place`.
        """
        self.device, self.fixed = device, fixed
        self._buffers: dict[tuple[str, int], Any] = {}
        self._kinds = {key: (value.shape, value.dtype) for key, value in initial.items()}
        self.sides: dict[Family, int] = {
            "parameter": 0, "state": 0, "accumulator": _ZEROS, "statistic": 0, "average": 0,
        }  # fmt: skip
        """Which buffer of each family is current."""
        self.handed: set[str] = set()
        """Keys whose current value is no buffer but what a run returned, another each time; see `SplitStore`."""
        for key, value in initial.items():
            if family(key) != "accumulator":
                self.write(key, value)

    def buffer(self, key: str, side: int) -> Any:
        """The buffer of a tensor on a side, made when first asked for."""
        side = 0 if key in self.fixed else side
        if (key, side) not in self._buffers:
            self._buffers[key, side] = ort_value(np.zeros(*self._kinds[key]), self.device)
        return self._buffers[key, side]

    def current(self, key: str) -> Any:
        """The buffer that holds a tensor now."""
        return self.buffer(key, self.sides[family(key)])

    def read(self, key: str, *, copy: bool = True) -> Array:
        """A copy of a tensor, or what the runtime shows of it."""
        return as_read(self.current(key), copy=copy)

    def write(self, key: str, value: Array) -> None:
        """Replace a tensor, or add one."""
        self._kinds.setdefault(key, (value.shape, value.dtype))
        self.current(key).update_inplace(np.ascontiguousarray(value))

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero."""
        self.sides["accumulator"] = _ZEROS


class BoundRunner:
    """Runs a graph whose inputs and outputs are bound once for each pair of current sides.

    Where the provider records CUDA graphs, each binding is a recording of its own: a recording repeats what it did at
    the addresses that it met. So its results lie in fixed buffers too, and are read before the next run.
    """

    def __init__(self, opened: OpenSession, graph: GraphFile, store: BoundStore) -> None:
        """Bind `graph`, open as `opened`, to `store`.

        A family of tensors is written over what it replaces where the graph says so of each that is not fixed there.
        """
        self._opened, self._graph, self._store = opened, graph, store
        self._bindings: dict[tuple[int, ...], tuple[Any, tuple[Any, ...]]] = {}
        self._results: dict[str, Any] = {}
        self._fed: dict[str, Any] = {}
        self._transient = [p.name for p in graph.outputs if key_of(p) is None]
        places = written(graph.outputs)
        self._written = {family(key) for key in places}
        self._moving = {family(key) for key, in_place in places.items() if not in_place and key not in store.fixed}

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        for name, value in feeds.items():
            if name in self._fed:
                self._fed[name].update_inplace(value)
            else:
                self._fed[name] = ort_value(np.array(value, order="C"), self._store.device)
        store = self._store
        sides = tuple(store.sides.values())
        if sides not in self._bindings:
            self._bindings[sides] = self._bind(), run_options(self._opened, next(_RECORDINGS))
        binding, options = self._bindings[sides]
        if store.handed:
            self._bind_handed(binding)
        if not self._opened.captures:
            for name in self._transient:
                binding.bind_output(name)  # anew, so that a result not yet read is not overwritten
        self._opened.session.run_with_iobinding(binding, *options)
        results = dict(zip(self._names(), binding.get_outputs(), strict=True))
        for name in self._written:
            store.sides[name] = self._target(name)
        if self._opened.captures:
            return {name: ort_value(results[name].numpy()) for name in self._transient}
        return {name: results[name] for name in self._transient}

    def _bind(self) -> Any:
        binding, store = self._opened.session.io_binding(), self._store
        for port in self._graph.inputs:
            key = key_of(port)
            value = self._fed[port.name] if key is None else store.current(key)
            if port.rows is None:
                binding.bind_ortvalue_input(port.name, value)
            else:
                binding.bind_input(port.name, *store.device, *_part(port, value))
        for port in self._graph.outputs:
            key = key_of(port)
            if key is None:
                continue
            value = store.buffer(key, self._target(family(key)))
            if port.rows is None:
                binding.bind_ortvalue_output(port.name, value)
            else:
                binding.bind_output(port.name, *store.device, *_part(port, value))
        if self._opened.captures:
            for name in self._transient:
                binding.bind_ortvalue_output(name, self._result(name))
        return binding

    def _bind_handed(self, binding: Any) -> None:
        """Bind addresses, not values: those live no longer than the store wants."""
        store = self._store
        for port in self._graph.inputs:
            if (key := key_of(port)) in store.handed:
                binding.bind_input(port.name, *store.device, *_part(port, store.current(key)))
        for port in self._graph.outputs:
            if (key := key_of(port)) in store.handed:
                buffer = store.buffer(key, self._target(family(key)))
                binding.bind_output(port.name, *store.device, *_part(port, buffer))

    def _result(self, name: str) -> Any:
        """The fixed buffer of an output that is read each time, in the shape that the session has worked out."""
        if name not in self._results:
            shape = next(o.shape for o in self._opened.session.get_outputs() if o.name == name)
            dtype = next(p.dtype for p in self._graph.outputs if p.name == name)
            self._results[name] = ort_value(np.zeros(shape, dtype), self._store.device)
        return self._results[name]

    def _target(self, name: Family) -> int:
        """The side of a family that a run writes; the zeros of accumulators stay."""
        side = self._store.sides[name]
        return _other(side) if name in self._moving or side == _ZEROS else side

    def _names(self) -> list[str]:
        # Outputs come in the order they were bound: those of the store first.
        return [p.name for p in self._graph.outputs if key_of(p) is not None] + self._transient


_RECORDINGS = count(1)
"""Numbers of CUDA graphs, no two alike in a process."""
_ZEROS = -1
"""The side of accumulators that is never written."""


def _part(port: Port, value: Any) -> tuple[np.dtype[Any], list[int], int]:
    """Element type, shape and address of what a port reads or writes of a whole: its rows, or all."""
    dtype, shape = np.dtype(port.dtype), [int(d) for d in port.shape]
    first = port.rows[0] if port.rows else 0
    return dtype, shape, value.data_ptr() + first * math.prod(shape[1:]) * dtype.itemsize


def _other(side: int) -> int:
    return 1 if side == 0 else 0


def ort_value(value: Array, device: Device = CPU) -> Any:
    """An OrtValue in the memory of a device."""
    # np.ascontiguousarray would make a scalar an array of one element.
    return runtime().OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"), *device)


def as_read(value: Any, *, copy: bool) -> Array:
    """The numbers of an OrtValue, of which the runtime may show those in memory."""
    shown: Array = value.numpy()
    if copy:
        return np.array(shown)
    shown.setflags(write=False)
    return shown
