"""What the benchmark and the worker process of one side write to each other, as JSON files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from onnxft.benchmark.config import BenchConfig, Side


@dataclass(frozen=True)
class Request:
    """The work of one side."""

    artifact: str
    side: Side
    config: BenchConfig
    batch_size: int
    threads: int
    result: str
    """File that takes the `Response`."""
    gradients: str
    """safetensors file that takes what is compared, at the initial parameters: {parameter: gradient of the mean loss},
    or {output: array} of an inference."""
    generate: str | None = None
    """Where the side wants an artifact of its own made of the source; None: it is to be measured."""


@dataclass(frozen=True)
class OperatorTime:
    """What one kind of operator takes of a step, by the runtime's own profile."""

    operator: str
    """Type, such as `MatMul`."""
    provider: str
    count: int
    """Calls in a step."""
    seconds: float
    """In a step."""


@dataclass(frozen=True)
class Peaks:
    """What the side's own runtime reaches at most, measured in its process."""

    flops: float
    """Floating-point operations a second, of a large MatMul in the precision of the side."""
    bandwidth: float
    """Bytes a second, read and written, of a large copy."""


@dataclass(frozen=True)
class KeptFeatures:
    """What features take before the first step on them, of each row."""

    seconds: float
    """Computing them, once."""
    bytes: int
    """Keeping them."""


@dataclass(frozen=True)
class Measurement:
    """What one side measured; times in seconds, raw."""

    provider_requested: str
    provider_obtained: str
    nodes: dict[str, int]
    """{provider: nodes} of one training step; empty where the runtime cannot tell."""
    fallback_nodes: int | None
    """Nodes of `nodes` on another provider than the obtained one; None where the runtime cannot tell."""
    versions: dict[str, str]
    build_seconds: float
    first_step_seconds: float
    warmup_seconds: tuple[float, ...]
    step_seconds: tuple[float, ...]
    peak_rss_bytes: int | None
    """Peak resident memory of the process up to the last step; None where the system does not tell."""
    loss: float
    """Loss of the batch at the initial parameters."""
    options: dict[str, str] = field(default_factory=dict)
    """Provider options that were set; of torch the device."""
    precision: str = "float32"
    """That of the multiplications."""
    fallback: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """{provider: names of its nodes}, for those not on the obtained provider."""
    peak_gpu_bytes: int | None = None
    """GPU memory of the process after the last step, of which a runtime gives nothing back; None without a GPU."""
    operators: tuple[OperatorTime, ...] = ()
    """The longest first; empty where no profile was made."""
    peaks: Peaks | None = None
    features: KeptFeatures | None = None
    """Of a side that trains on them."""
    gradients_error: str | None = None
    """Why there is nothing to compare."""


@dataclass(frozen=True)
class Failure:
    """Why a side has no measurement."""

    kind: str
    """Class of the error."""
    message: str


@dataclass(frozen=True)
class Response:
    """One of the two."""

    measurement: Measurement | None = None
    failure: Failure | None = None


def write(path: Path, value: Request | Response) -> None:
    """Write as JSON."""
    path.write_bytes(msgspec.json.encode(value))


def read_request(path: Path) -> Request:
    """Read what the benchmark wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Request)


def read_response(path: Path) -> Response | None:
    """Read what a worker wrote; None where it wrote nothing or something else."""
    try:
        response = msgspec.json.decode(path.read_bytes(), type=Response)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return response if (response.measurement is None) != (response.failure is None) else None
