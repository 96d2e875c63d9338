"""The worker of the engine: a script run by the interpreter that has onnxruntime-training.

    python -I worker.py MEMORY

MEMORY is an inherited file descriptor; see channel.py. It knows nothing of onnxft, and no formula but clipping: the
other environment needs the standard library, numpy and onnxruntime-training. It ends when its input does.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxft.runtime.ort_training import channel, state
    from onnxft.runtime.ort_training.channel import Array
else:

    def _neighbour(name: str) -> ModuleType:
        """A file beside this one; this interpreter has no package onnxft."""
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    channel, state = _neighbour("channel"), _neighbour("state")

Arrays = dict[str, "Array"]
Answer = tuple[dict[str, Any], Arrays]


def main(memory: int) -> None:
    """Answer one request after the other: {call, arguments} by {values} or {error}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the engine decides when it ends
    # What a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    ends = channel.Channel(sys.stdin.buffer, answers, memory)
    worker = Worker()
    while (request := ends.receive()) is not None:
        words, arrays = request
        try:
            values, results = getattr(worker, words["call"])(arrays, **words["arguments"])
            reply = {"values": values}
        except Exception as err:  # the package raises RuntimeError and the runtime's own classes
            reply, results = {"error": f"{type(err).__name__}: {err}"}, {}
        try:
            ends.send(reply, results)
        except BrokenPipeError:
            return
        except OSError as err:  # no memory for the results
            ends.send({"error": str(err)}, {})


class Worker:
    """The calls. Each takes arrays and arguments, and gives values and arrays."""

    def start(self, arrays: Arrays) -> Answer:
        """Import onnxruntime-training; its version, and the devices that it can use."""
        # onnxruntime.training imports these too, which need torch and onnx; what is called here needs neither.
        for name in ("amp", "artifacts", "optim"):
            sys.modules[f"onnxruntime.training.{name}"] = ModuleType(name)
        import onnxruntime.training.api

        self._runtime, self._api = onnxruntime, onnxruntime.training.api
        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return {"version": onnxruntime.__version__, "devices": ["cpu", *(["cuda"] if cuda else [])]}, {}

    def open(self, arrays: Arrays, *, files: dict[str, str], device: str, threads: int | None) -> Answer:
        """Open the graphs {training, evaluation, optimizer} on a checkpoint; the names that they read and give."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._files, self._device, self._options = files, device, options
        self._load(files["checkpoint"])
        names = {}
        for graph, mode in (("training", True), ("evaluation", False)):
            self._module.train(mode)
            names[graph] = [self._module.input_names(), self._module.output_names()]
        return names, {}

    # ----- passes -----

    def train(self, arrays: Arrays, *, outputs: list[str]) -> Answer:
        """A training pass, which adds to the accumulated gradients; the outputs named."""
        results = self._run(arrays, outputs, training=True)
        self._accumulated = True
        return {}, results

    def evaluate(self, arrays: Arrays, *, outputs: list[str]) -> Answer:
        """A pass in inference behaviour; the outputs named."""
        return {}, self._run(arrays, outputs, training=False)

    def gradients(self, arrays: Arrays, *, outputs: list[str]) -> Answer:
        """The gradients of one training pass as `gradient/NAME`, and the outputs named; what is accumulated stays."""
        saved = {n: np.array(g) for n, g in self._gradients().items()} if self._accumulated else {}
        self._module.lazy_reset_grad()
        results = self._run(arrays, outputs, training=True)
        results |= {f"gradient/{name}": np.array(gradient) for name, gradient in self._gradients().items()}
        self._write_gradients(saved)
        if not saved:
            self._module.lazy_reset_grad()
        return {}, results

    def scale_gradients(self, arrays: Arrays, *, factor: float) -> Answer:
        """Multiply what is accumulated."""
        self._clip(factor, math.inf, math.inf)
        return {}, {}

    def optimizer_step(self, arrays: Arrays, *, lr: float, factor: float, max_value: float, max_norm: float) -> Answer:
        """An update from the accumulated gradients, which are then empty.

        They are multiplied by `factor`, then clipped: each element to `max_value`, then all together by
        min(1, max_norm / (norm + 1e-6)), as torch does; infinite is off.
        """
        if factor != 1 or max_value < math.inf or max_norm < math.inf:
            self._clip(factor, max_value, max_norm)
        self._optimizer.set_learning_rate(lr)
        self._optimizer.step()
        self._clear()
        return {}, {}

    # ----- what is trained -----

    def parameters(self, arrays: Arrays, *, trained: bool) -> Answer:
        """{name: value}, of those that are trained or of the frozen ones."""
        return {}, {name: p.data for name, p in self._state.parameters if p.requires_grad == trained}

    def set_parameters(self, arrays: Arrays) -> Answer:
        """Replace values by name."""
        for name, value in arrays.items():
            self._state.parameters[name].data = np.array(value)
        return {}, {}

    def parameter_vector(self, arrays: Arrays, *, trainable_only: bool) -> Answer:
        """All values one after the other, in the package's own order; ValueError where they are not all float32."""
        self._require_float32(trainable_only)
        return {}, {"vector": self._module.get_contiguous_parameters(trainable_only).numpy()}

    def set_parameter_vector(self, arrays: Arrays, *, trainable_only: bool) -> Answer:
        """Replace them; ValueError where the number of values is another."""
        self._require_float32(trainable_only)
        size, vector = self._module.get_parameters_size(trainable_only), np.array(arrays["vector"])
        if vector.shape != (size,):
            raise ValueError(f"the vector has the shape {list(vector.shape)}, the parameters have {size} values")
        value = self._runtime.OrtValue.ortvalue_from_numpy(vector)._ortvalue
        self._module.copy_buffer_to_parameters(value, trainable_only)
        return {}, {}

    def optimizer_state(self, arrays: Arrays) -> Answer:
        """{`parameter/slot`: value}, and `step` where the optimizer counts."""
        with tempfile.TemporaryDirectory() as scratch:
            return {}, state.read_state(self._save(scratch).read_bytes())

    def set_optimizer_state(self, arrays: Arrays) -> Answer:
        """Replace the whole state, and empty the accumulated gradients; parameters stay."""
        parameters = {name: np.array(value) for name, value in self.parameters({}, trained=True)[1].items()}
        arrays = {name: np.array(value) for name, value in arrays.items()}
        # The file leaves out a step count of 0, so there would be no place for the new one before a step.
        self._optimizer.set_learning_rate(0.0)
        self._optimizer.step()
        with tempfile.TemporaryDirectory() as scratch:
            path = self._save(scratch)
            path.write_bytes(state.write_state(path.read_bytes(), arrays))
            self._load(str(path))
        return self.set_parameters(parameters)

    def peak_bytes(self, arrays: Arrays) -> Answer:
        """Peak resident memory of this process; None where the system does not tell."""
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        return {"bytes": found[0] if found else None}, {}

    # ----- helpers -----

    def _load(self, checkpoint: str) -> None:
        files = self._files
        self._state = self._api.CheckpointState.load_checkpoint(checkpoint)
        self._module = self._api.Module(
            files["training"], self._state, files["evaluation"], device=self._device, session_options=self._options
        )
        self._optimizer = self._api.Optimizer(files["optimizer"], self._module)
        self._trained = [name for name, p in self._state.parameters if p.requires_grad]
        self._clear()

    def _save(self, folder: str) -> Path:
        path = Path(folder) / "checkpoint"
        self._api.CheckpointState.save_checkpoint(self._state, path, include_optimizer_state=True)
        return path

    def _run(self, arrays: Arrays, outputs: list[str], *, training: bool) -> Arrays:
        self._module.train(training)
        results = self._module(*(arrays[name] for name in self._module.input_names()))
        names = self._module.output_names()
        found = dict(zip(names, results if len(names) > 1 else [results], strict=True))
        return {name: np.asarray(found[name]) for name in outputs}

    def _gradients(self) -> Arrays:
        """What is accumulated: on the CPU the memory itself, elsewhere copies."""
        return {name: self._state.parameters[name].grad for name in self._trained}

    def _write_gradients(self, values: Arrays) -> None:
        for name, value in values.items():
            self._state.parameters[name]._parameter.grad.update_inplace(np.ascontiguousarray(value))

    def _clip(self, factor: float, max_value: float, max_norm: float) -> None:
        gradients = self._gradients()
        for gradient in gradients.values():
            gradient *= np.float32(factor)
            if max_value < math.inf:
                np.clip(gradient, -max_value, max_value, out=gradient)
        if max_norm < math.inf:
            norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
            for gradient in gradients.values():
                gradient *= np.float32(min(1.0, max_norm / (norm + 1e-6)))
        if self._device != "cpu":
            self._write_gradients(gradients)

    def _clear(self) -> None:
        self._accumulated = False
        self._module.lazy_reset_grad()

    def _require_float32(self, trainable_only: bool) -> None:
        for name, parameter in self._state.parameters:
            if (parameter.requires_grad or not trainable_only) and parameter.data.dtype != np.float32:
                raise ValueError(f"'{name}' is {parameter.data.dtype}, and the vector is float32")


if __name__ == "__main__":
    main(int(sys.argv[1]))
