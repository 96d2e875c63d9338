"""The engine of several processes: sums over all of them take the place of each one's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxft.arrays import Array, Arrays
from onnxft.errors import DataError
from onnxft.runtime.engine import Hyper, Sums
from onnxft.runtime.keys import ACCUMULATOR_SLOT
from onnxft.runtime.native import NativeEngine
from onnxft.runtime.processes import Processes


class SharedEngine(NativeEngine):
    """One process of several that train together; what computes or uses gradients is called in all of them alike."""

    def __init__(self, *args: Any, processes: Processes, **settings: Any) -> None:
        """As `NativeEngine`."""
        super().__init__(*args, **settings)
        self._processes = processes

    def step(self, batch: Arrays, hyper: Hyper) -> Sums:
        """One optimizer step on the shares of a batch."""
        sums = self.accumulate(batch)
        _, weight, _ = sums.read()
        if not weight > 0:
            self._clear_accumulators()
            raise DataError("no row or label of the batch counts, in any process, so there is no mean gradient.")
        self.update(hyper, weight)
        return sums

    def accumulate(self, batch: Arrays) -> Sums:
        """Add the gradients of this share to the accumulators; loss, weight and metrics are those of all shares."""
        loss, weight, metrics = super().accumulate(batch).read()
        all_loss, all_weight, *rest = self._processes.sum({"": np.array([loss, weight, *metrics.values()])})[
            ""
        ].tolist()
        return Sums(lambda: (all_loss, all_weight, dict(zip(metrics, rest, strict=True))))

    def update(self, hyper: Hyper, weight_sum: float) -> None:
        """One optimizer step from the accumulators of all processes over `weight_sum`, that of all."""
        keys = {p.name: f"{p.name}/{ACCUMULATOR_SLOT}" for p in self.manifest.parameters}
        for name, total in self._processes.sum({name: self._store.read(key) for name, key in keys.items()}).items():
            self._store.write(keys[name], total)
        super().update(hyper, weight_sum)

    def _agreed(self, *, finite: bool) -> bool:
        """Whether gradients are finite in all processes: an update is left out in all or in none."""
        return not self._processes.any(not finite)

    def gradients(self, batch: Arrays) -> tuple[dict[str, Array], float]:
        """Gradients of the weighted loss sum over all shares, and the weight sum."""
        sums, weight = super().gradients(batch)
        return self._processes.sum(sums), float(self._processes.sum({"": np.array([weight])})[""][0])
