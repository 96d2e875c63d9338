"""The tensors that live between steps, and the two ways a graph reads and writes them.

A *key* names such a tensor independently of the graph: `weight` (parameter), `weight/exp_avg`
(state), `weight/gradient` (accumulator), `weight/average` (average), `bn.running_mean/statistic` (buffer).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import count
from typing import Any, Literal, Protocol

import numpy as np

from onnxft.manifest import GraphFile, Port
from onnxft.runtime.engine import Array, Arrays
from onnxft.runtime.execution import Execution
from onnxft.runtime.providers import provider, runtime
from onnxft.runtime.sessions import OpenSession, run_options

ACCUMULATOR_SLOT = "gradient"
STATISTIC_SLOT = "statistic"
AVERAGE_SLOT = "average"

Device = tuple[str, int]
"""The runtime's name of a memory, and the index of the device."""
CPU: Device = ("cpu", 0)

STATE_SLOTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")

Family = Literal["parameter", "state", "accumulator", "statistic", "average"]
"""Tensors that change places together, but for those that every graph writes in place."""


def key_of(port: Port) -> str | None:
    """The key of the tensor behind a port; None for what is fed or read each time."""
    match port.role:
        case "parameter":
            return port.parameter
        case "buffer":
            return f"{port.buffer}/{STATISTIC_SLOT}"
        case "state":
            return f"{port.parameter}/{port.slot}"
        case "accumulator" | "gradient":
            return f"{port.parameter}/{ACCUMULATOR_SLOT}"
        case "average":
            return f"{port.parameter}/{AVERAGE_SLOT}"
        case _:
            return None


def family(key: str) -> Family:
    """The family of a tensor."""
    match key.rpartition("/")[2]:
        case "gradient":
            return "accumulator"
        case "statistic":
            return "statistic"
        case "average":
            return "average"
        case slot if slot in STATE_SLOTS:
            return "state"
        case _:
            return "parameter"


def always_in_place(graphs: Iterable[GraphFile]) -> frozenset[str]:
    """Keys of what each of the graphs that write it writes over the old; accumulators have zeros beside them anyway."""
    places = _written(port for graph in graphs for port in graph.outputs)
    return frozenset(key for key, in_place in places.items() if in_place and family(key) != "accumulator")


def _written(outputs: Iterable[Port]) -> dict[str, bool]:
    """{key: whether all its rows may be written over the old} of what outputs write."""
    places: dict[str, bool] = {}
    for port in outputs:
        if (key := key_of(port)) is not None:
            places[key] = places.get(key, True) and port.in_place
    return places


def device_of(asked: Execution) -> Device:
    """Where parameters and state of a request live."""
    memory = provider(asked.provider).memory
    return CPU if memory == "cpu" else (memory, asked.device or 0)


class Runner(Protocol):
    """One open graph over a store."""

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once: tensors of the store move on, the other outputs are returned as OrtValues."""


Rows = tuple[int, int] | None
"""Rows of a tensor: the first and the one behind the last; None: all."""


class ValueStore:
    """Binding `values`: each tensor is the OrtValue that the last run returned, or one for each block of its rows."""

    def __init__(self, initial: Mapping[str, Array], device: Device = CPU, fixed: Collection[str] = ()) -> None:
        """Take the tensors over; accumulators begin as zeros. The runtime decides where, whatever is asked for."""
        self.values: dict[str, Any] = {}
        self._blocks: dict[str, dict[tuple[int, int], Any]] = {}
        self._zeros = {k: _ort_value(v) for k, v in initial.items() if family(k) == "accumulator"}
        for key, value in initial.items():
            self.write(key, value)
        self.clear_accumulators()

    def get(self, key: str, rows: Rows = None) -> Any:
        """A tensor or some of its rows; blocks are put together where all are asked for, and kept besides."""
        blocks = self._blocks.get(key, {})
        if rows in blocks:
            return blocks[rows]
        if key not in self.values:
            self.values[key] = _ort_value(np.concatenate([block.numpy() for _, block in sorted(blocks.items())]))
        return self.values[key] if rows is None else _ort_value(self.values[key].numpy()[slice(*rows)])

    def put(self, key: str, value: Any, rows: Rows = None) -> None:
        """Replace a tensor or some of its rows; a run that writes some writes all."""
        if rows is None:
            self.values[key] = value
            self._blocks.pop(key, None)
        else:
            self._blocks.setdefault(key, {})[rows] = value
            self.values.pop(key, None)

    def read(self, key: str) -> Array:
        """A copy of a tensor."""
        return np.array(self.get(key).numpy())

    def write(self, key: str, value: Array) -> None:
        """Replace a tensor, or add one."""
        self.put(key, _ort_value(np.array(value, order="C")))

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero."""
        for key, zeros in self._zeros.items():
            self.put(key, zeros)


class ValueRunner:
    """Runs a graph on OrtValues that it hands from run to run."""

    def __init__(self, opened: OpenSession, graph: GraphFile, store: ValueStore) -> None:
        """Bind `graph`, open as `opened`, to `store`."""
        self._session, self._store = opened.session, store
        self._reads = [(p.name, key, p.rows) for p in graph.inputs if (key := key_of(p)) is not None]
        self._writes = [(p.name, key_of(p), p.rows) for p in graph.outputs]

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        inputs = {name: self._store.get(key, rows) for name, key, rows in self._reads}
        inputs.update({name: _ort_value(value) for name, value in feeds.items()})
        results = self._session.run_with_ort_values([name for name, *_ in self._writes], inputs)
        transient = {}
        for (name, key, rows), value in zip(self._writes, results, strict=True):
            if key is None:
                transient[name] = value
            else:
                self._store.put(key, value, rows)
        return transient


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
        for key, value in initial.items():
            if family(key) != "accumulator":
                self.write(key, value)

    def buffer(self, key: str, side: int) -> Any:
        """The buffer of a tensor on a side, made when first asked for."""
        side = 0 if key in self.fixed else side
        if (key, side) not in self._buffers:
            self._buffers[key, side] = _ort_value(np.zeros(*self._kinds[key]), self.device)
        return self._buffers[key, side]

    def current(self, key: str) -> Any:
        """The buffer that holds a tensor now."""
        return self.buffer(key, self.sides[family(key)])

    def read(self, key: str) -> Array:
        """A copy of a tensor."""
        return np.array(self.current(key).numpy())

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
        places = _written(graph.outputs)
        written = [(family(key), in_place or key in store.fixed) for key, in_place in places.items()]
        self._written = {name for name, _ in written}
        self._moving = {name for name, in_place in written if not in_place}

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        for name, value in feeds.items():
            if name in self._fed:
                self._fed[name].update_inplace(value)
            else:
                self._fed[name] = _ort_value(np.array(value, order="C"), self._store.device)
        store = self._store
        sides = tuple(store.sides.values())
        if sides not in self._bindings:
            self._bindings[sides] = self._bind(), run_options(self._opened, next(_RECORDINGS))
        binding, options = self._bindings[sides]
        if not self._opened.captures:
            for name in self._transient:
                binding.bind_output(name)  # anew, so that a result not yet read is not overwritten
        self._opened.session.run_with_iobinding(binding, *options)
        results = dict(zip(self._names(), binding.get_outputs(), strict=True))
        for name in self._written:
            store.sides[name] = self._target(name)
        if self._opened.captures:
            return {name: _ort_value(results[name].numpy()) for name in self._transient}
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

    def _result(self, name: str) -> Any:
        """The fixed buffer of an output that is read each time, in the shape that the session has worked out."""
        if name not in self._results:
            shape = next(o.shape for o in self._opened.session.get_outputs() if o.name == name)
            dtype = next(p.dtype for p in self._graph.outputs if p.name == name)
            self._results[name] = _ort_value(np.zeros(shape, dtype), self._store.device)
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
    """Element type, shape and address of the rows of a port within the buffer of the whole."""
    assert port.rows is not None
    dtype, shape = np.dtype(port.dtype), [int(d) for d in port.shape]
    return dtype, shape, value.data_ptr() + port.rows[0] * math.prod(shape[1:]) * dtype.itemsize


def _other(side: int) -> int:
    return 1 if side == 0 else 0


def _ort_value(value: Array, device: Device = CPU) -> Any:
    # np.ascontiguousarray would make a scalar an array of one element.
    return runtime().OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"), *device)
