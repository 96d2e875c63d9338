"""Tensors between steps as values that runs return, for providers that do not keep to bound buffers.

Where such a provider computes gradients and another updates, both work on the same memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.manifest import GraphFile
from onnxft.runtime.buffers import CPU, BoundStore, Device, as_read, ort_value
from onnxft.runtime.keys import family, key_of
from onnxft.runtime.sessions import OpenSession

Rows = tuple[int, int] | None
"""Rows of a tensor: the first and the one behind the last; None: all."""


class ValueStore:
    """Binding `values`: each tensor is the OrtValue that the last run returned, or one for each block of its rows."""

    def __init__(self, initial: Mapping[str, Array], device: Device = CPU, fixed: Collection[str] = ()) -> None:
        """Take the tensors over; accumulators begin as zeros. The runtime decides where, whatever is asked for."""
        self.values: dict[str, Any] = {}
        self._blocks: dict[str, dict[tuple[int, int], Any]] = {}
        self._zeros = {k: ort_value(v) for k, v in initial.items() if family(k) == "accumulator"}
        for key, value in initial.items():
            self.write(key, value)
        self.clear_accumulators()

    def get(self, key: str, rows: Rows = None) -> Any:
        """A tensor or some of its rows; blocks are put together where all are asked for, and kept besides."""
        blocks = self._blocks.get(key, {})
        if rows in blocks:
            return blocks[rows]
        if key not in self.values:
            self.values[key] = ort_value(np.concatenate([block.numpy() for _, block in sorted(blocks.items())]))
        return self.values[key] if rows is None else ort_value(self.values[key].numpy()[slice(*rows)])

    def put(self, key: str, value: Any, rows: Rows = None) -> None:
        """Replace a tensor or some of its rows; a run that writes some writes all."""
        if rows is None:
            self.values[key] = value
            self._blocks.pop(key, None)
        else:
            self._blocks.setdefault(key, {})[rows] = value
            self.values.pop(key, None)

    def read(self, key: str, *, copy: bool = True) -> Array:
        """A copy of a tensor, or what the runtime shows of it."""
        return as_read(self.get(key), copy=copy)

    def write(self, key: str, value: Array) -> None:
        """Replace a tensor, or add one."""
        self.put(key, ort_value(np.array(value, order="C")))

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero."""
        for key, zeros in self._zeros.items():
            self.put(key, zeros)


class SplitStore(BoundStore):
    """Buffers for the provider that updates, and of the one that computes gradients the OrtValues that it returned:
    nothing is copied between the two.
    """

    def get(self, key: str, rows: Rows = None) -> Any:
        """A whole tensor, as the graphs read it that are not of updates."""
        assert rows is None, key
        return self.current(key)

    def put(self, key: str, value: Any, rows: Rows = None) -> None:
        """Hold `value` in the place of the buffer."""
        assert rows is None, key
        if family(key) == "accumulator":
            self.sides["accumulator"] = 0  # not the zeros
        self._buffers[key, self.sides[family(key)]] = value
        self.handed.add(key)

    def add(self, key: str, value: Any, rows: Rows = None) -> None:
        """Add to an accumulator; the first that comes is the accumulator then."""
        assert rows is None, key
        if key in self.handed:
            total = self.current(key).numpy()  # no copy: both are in the CPU's memory
            np.add(total, value.numpy(), out=total)
        else:
            self.put(key, value)

    def clear_accumulators(self) -> None:
        """Set every accumulator to zero, and let go of what was handed over."""
        super().clear_accumulators()
        for key in [key for key in self.handed if family(key) == "accumulator"]:
            self.handed.discard(key)
            del self._buffers[key, 0]


class ValueRunner:
    """Runs a graph on OrtValues that it hands from run to run."""

    def __init__(self, opened: OpenSession, graph: GraphFile, store: ValueStore | SplitStore) -> None:
        """Bind `graph`, open as `opened`, to `store`."""
        self._session, self._store = opened.session, store
        self._reads = [(p.name, key, p.rows) for p in graph.inputs if (key := key_of(p)) is not None]
        accumulates = any(p.role == "accumulator" for p in graph.inputs)
        put_gradient = store.add if isinstance(store, SplitStore) and not accumulates else store.put
        self._writes = [
            (p.name, key_of(p), p.rows, put_gradient if p.role == "gradient" else store.put) for p in graph.outputs
        ]

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """Run once; see `Runner`."""
        inputs = {name: self._store.get(key, rows) for name, key, rows in self._reads}
        inputs.update({name: ort_value(value) for name, value in feeds.items()})
        results = self._session.run_with_ort_values([name for name, *_ in self._writes], inputs)
        transient = {}
        for (name, key, rows, put), value in zip(self._writes, results, strict=True):
            if key is None:
                transient[name] = value
            else:
                put(key, value, rows)
        return transient
