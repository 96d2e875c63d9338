"""What a side's own runtime reaches at most: a large MatMul, and a large copy."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from onnxft.benchmark.exchange import Peaks
from onnxft.memory import physical_memory
from onnxft.runtime.providers import runtime
from onnxft.runtime.sessions import OpenSession

Open = Callable[[bytes, Mapping[str, int]], OpenSession]
"""Opens a model with sizes for its symbolic dimensions, as the side opened its artifact."""
Clock = Callable[[], float]

CHAIN = 4
"""MatMuls in one run, so that handing over the operands does not count."""
MATMUL_SIZES = (256, 2048, 4096, 8192)
"""The first is for what multiplies slowly, such as bfloat16 of torch on a processor without it."""
COPY_BYTES = 2**29
"""Much larger than the caches."""
LONG_ENOUGH = 0.02
"""Seconds of a run: a shorter one is tried again with larger matrices."""
REPEATS = 5
MAX_SECONDS = 1.0
"""After which nothing is repeated."""


def measure_peaks(measure: Callable[[], Peaks]) -> Peaks | None:
    """What `measure` finds; None where it fails, with the traceback in the side's log: the times stand without it."""
    try:
        return measure()
    except Exception:  # of any runtime, and memory may be short
        traceback.print_exc()
        return None


def session_peaks(open_model: Open, threads: int) -> Peaks:
    """Of a session's runtime; the copy in the memory where it keeps the parameters."""
    flops = peak_flops(lambda n: _prepare(open_model(MATMULS, {"n": n}), n))
    opened = open_model(NEGATION, {"n": MATMUL_SIZES[-1]})
    if opened.provider.memory == "cpu":
        opened.close()
        return Peaks(flops, copy_bandwidth(threads))
    seconds = shortest(_prepare(opened, MATMUL_SIZES[-1]))
    return Peaks(flops, 2 * 4 * MATMUL_SIZES[-1] ** 2 / seconds)


def peak_flops(prepare: Callable[[int], Callable[[], object]], clock: Clock = time.perf_counter) -> float:
    """Floating-point operations a second of the best size.

    Args:
        prepare: n -> a function that multiplies matrices of (n, n) `CHAIN` times and waits for the result.
        clock: seconds.
    """
    best = 0.0
    for n in MATMUL_SIZES:
        seconds = shortest(prepare(n), clock)
        best = max(best, CHAIN * 2 * n**3 / seconds)
        if seconds >= LONG_ENOUGH:
            break
    return best


def copy_bandwidth(threads: int, clock: Clock = time.perf_counter) -> float:
    """Bytes a second, read and written, of a copy by `threads` threads; numpy lets them run at once."""
    size = min(COPY_BYTES, (physical_memory() or COPY_BYTES * 16) // 16)
    source = [np.ones(size // threads // 4, np.float32) for _ in range(threads)]
    target = [np.zeros_like(part) for part in source]
    with ThreadPoolExecutor(threads) as pool:
        seconds = shortest(lambda: list(pool.map(np.copyto, target, source)), clock)
    return 2 * sum(part.nbytes for part in source) / seconds


def shortest(call: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of the shortest of up to `REPEATS` calls after a first one."""
    call()
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < MAX_SECONDS:
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def _prepare(opened: OpenSession, n: int) -> Callable[[], object]:
    """A function that runs a model once, its operands and its result in the provider's own memory."""
    binding: Any = opened.session.io_binding()
    device = (opened.provider.memory, int(opened.options.get("device_id", 0)))
    # Rows that sum to about 1 keep the products of a chain in range.
    matrix = np.full((n, n), 1 / n, np.float32)
    operand = runtime().OrtValue.ortvalue_from_numpy(matrix, *device)
    for port in opened.session.get_inputs():
        binding.bind_ortvalue_input(port.name, operand)
    for port in opened.session.get_outputs():
        binding.bind_output(port.name, *device)

    def run() -> object:
        opened.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return operand  # on the CPU it is the memory of `matrix`, which must live as long as the binding

    return run


# ----- the models -----
# The run half has no onnx package to build them. A field of a protocol buffer is its number and kind, its length and
# its content; the numbers are those of onnx.proto.


def _field(number: int, *content: bytes) -> bytes:
    data = b"".join(content)
    assert number < 16
    length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + length + data


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3, value])


def _square(name: str) -> bytes:
    """A value of (n, n) float32."""
    dim = _field(1, _field(2, b"n"))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1), _field(2, dim, dim)))


def _model(op_type: str, inputs: tuple[str, ...], chain: int) -> bytes:
    """y = op(...op(x, w)..., w) in opset 18, IR version 10."""
    first, *others = inputs
    names = [first, *(f"y{i}" for i in range(1, chain)), "y"]
    nodes = [
        _field(1, *(_field(1, v.encode()) for v in (x, *others)), _field(2, y.encode()), _field(4, op_type.encode()))
        for x, y in pairwise(names)
    ]
    ports = [_field(11, _square(v)) for v in inputs]
    graph = _field(7, *nodes, _field(2, b"probe"), *ports, _field(12, _square("y")))
    return _number(1, 10) + graph + _field(8, _field(1), _number(2, 18))


MATMULS = _model("MatMul", ("x", "w"), CHAIN)
NEGATION = _model("Neg", ("x",), 1)
