"""The tensors that live between steps, and the two ways a graph reads and writes them.

A *key* names such a tensor independently of the graph: `weight` (parameter), `weight/exp_avg`
(state), `weight/gradient` (accumulator).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from onnxft.manifest import GraphFile, Port
from onnxft.runtime.engine import Array, Arrays
from onnxft.runtime.providers import runtime
from onnxft.runtime.sessions import OpenSession

ACCUMULATOR_SLOT = "gradient"


def key_of(port: Port) -> str | None:
    """The key of the tensor behind a port; None for what is fed or read each time."""
    match port.role:
        case "parameter" | "buffer":
            return port.parameter
        case "state":
            return f"{port.parameter}/{port.slot}"
        case "accumulator" | "gradient":
            return f"{port.parameter}/{ACCUMULATOR_SLOT}"
        case _:
            return None


class Runner(Protocol):
    """One open graph over a store."""

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once: tensors of the store move on, the other outputs are returned as OrtValues."""


class ValueStore:
    """Binding `values`: each tensor is the OrtValue that the last run returned."""

    def __init__(self, initial: Mapping[str, Array]) -> None:
        """Take the tensors over; keys that end in `/gradient` are accumulators."""
        self.values: dict[str, Any] = {}
        self._zeros = {k: _ort_value(v) for k, v in initial.items() if k.endswith(f"/{ACCUMULATOR_SLOT}")}
        for key, value in initial.items():
            self.write(key, value)
        self.clear_accumulators()

    def read(self, key: str) -> Array:
        """A copy of a tensor."""
        return np.array(self.values[key].numpy())

    def write(self, key: str, value: Array) -> None:
        """Replace a tensor."""
        self.values[key] = _ort_value(np.array(value, order="C"))

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero."""
        self.values.update(self._zeros)


class ValueRunner:
    """Runs a graph on OrtValues that it hands from run to run."""

    def __init__(self, opened: OpenSession, graph: GraphFile, store: ValueStore) -> None:
        """Bind `graph`, open as `opened`, to `store`."""
        self._session, self._store = opened.session, store
        self._reads = [(p.name, key) for p in graph.inputs if (key := key_of(p)) is not None]
        self._writes = [key_of(p) for p in graph.outputs]
        self._outputs = [p.name for p in graph.outputs]

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        inputs = {name: self._store.values[key] for name, key in self._reads}
        inputs.update({name: _ort_value(value) for name, value in feeds.items()})
        results = self._session.run_with_ort_values(self._outputs, inputs)
        transient = {}
        for name, key, value in zip(self._outputs, self._writes, results, strict=True):
            if key is None:
                transient[name] = value
            else:
                self._store.values[key] = value
        return transient


class BoundStore:
    """Binding `bound`: two buffers for each tensor, which change places after a run that wrote one.

    Accumulators have a third, constant buffer of zeros that stands for 'nothing accumulated yet'.
    """

    def __init__(self, initial: Mapping[str, Array]) -> None:
        """Take the tensors over; keys that end in `/gradient` are accumulators."""
        self._buffers: dict[tuple[str, int], Any] = {}
        self._initial = dict(initial)
        self.side = 0
        """Which buffer of parameters, state and running statistics is current."""
        self.accumulator_side = -1
        """Which buffer of the accumulators is current; -1 the zeros."""
        for key, value in initial.items():
            if not _is_accumulator(key):
                self.write(key, value)

    def current(self, key: str) -> int:
        """The current side of a tensor."""
        return self.accumulator_side if _is_accumulator(key) else self.side

    def buffer(self, key: str, side: int) -> Any:
        """The buffer of a tensor on a side, made when first asked for."""
        if (key, side) not in self._buffers:
            self._buffers[key, side] = _ort_value(np.zeros_like(self._initial[key]))
        return self._buffers[key, side]

    def read(self, key: str) -> Array:
        """A copy of a tensor."""
        return np.array(self.buffer(key, self.current(key)).numpy())

    def write(self, key: str, value: Array) -> None:
        """Replace a tensor."""
        self.buffer(key, self.current(key)).update_inplace(np.ascontiguousarray(value))

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero."""
        self.accumulator_side = -1


class BoundRunner:
    """Runs a graph whose inputs and outputs are bound once for each pair of current sides."""

    def __init__(self, opened: OpenSession, graph: GraphFile, store: BoundStore, *, in_place: bool) -> None:
        """Bind `graph`, open as `opened`, to `store`.

        `in_place` writes each tensor over the one it replaces: only for graphs in which every element
        of an output depends on no other element of the tensor it replaces (the `update` role).
        """
        self._session, self._graph, self._store, self._in_place = opened.session, graph, store, in_place
        self._bindings: dict[tuple[int, int], Any] = {}
        self._fed: dict[str, Any] = {}
        self._transient = [p.name for p in graph.outputs if key_of(p) is None]
        written = {key for p in graph.outputs if (key := key_of(p)) is not None}
        self._moves_accumulators = any(_is_accumulator(k) for k in written)
        self._moves_model = not in_place and any(not _is_accumulator(k) for k in written)

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        for name, value in feeds.items():
            if name in self._fed:
                self._fed[name].update_inplace(value)
            else:
                self._fed[name] = _ort_value(np.array(value, order="C"))
        store = self._store
        sides = (store.side, store.accumulator_side)
        binding = self._bindings.get(sides)
        if binding is None:
            binding = self._bindings[sides] = self._bind()
        for name in self._transient:
            binding.bind_output(name)  # anew, so that a result not yet read is not overwritten
        self._session.run_with_iobinding(binding)
        results = dict(zip(self._names(binding), binding.get_outputs(), strict=True))
        if self._moves_model:
            store.side = 1 - store.side
        if self._moves_accumulators:
            store.accumulator_side = _next_accumulator_side(store.accumulator_side)
        return {name: results[name] for name in self._transient}

    def _bind(self) -> Any:
        binding, store = self._session.io_binding(), self._store
        for port in self._graph.inputs:
            key = key_of(port)
            value = self._fed[port.name] if key is None else store.buffer(key, store.current(key))
            binding.bind_ortvalue_input(port.name, value)
        for port in self._graph.outputs:
            key = key_of(port)
            if key is not None:
                binding.bind_ortvalue_output(port.name, store.buffer(key, self._target(key)))
        return binding

    def _target(self, key: str) -> int:
        """The side that a run writes."""
        if _is_accumulator(key):
            return _next_accumulator_side(self._store.accumulator_side)
        return self._store.side if self._in_place else 1 - self._store.side

    def _names(self, binding: Any) -> list[str]:
        # Outputs bound to buffers come first, in the order they were bound; those bound anew follow.
        return [p.name for p in self._graph.outputs if key_of(p) is not None] + self._transient


def _next_accumulator_side(side: int) -> int:
    return 1 if side == 0 else 0


def _is_accumulator(key: str) -> bool:
    return key.endswith(f"/{ACCUMULATOR_SLOT}")


def _ort_value(value: Array) -> Any:
    return runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
