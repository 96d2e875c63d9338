"""A training step with a known result, tried on one provider: `python -m onnxft.runtime.probe PROVIDER FINDINGS`.

The artifact in the package and what torch computes for it in float64 are written by `tools/make_probe.py`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from safetensors.numpy import load_file

from onnxft.arrays import Array, Arrays
from onnxft.errors import OnnxftError, ProviderError
from onnxft.runtime.engine import Placement
from onnxft.runtime.execution import Execution, Precision
from onnxft.runtime.needs import Lack, LackError
from onnxft.runtime.providers import first_line, provider, runtime
from onnxft.runtime.session import TrainSession

ARTIFACT = Path(__file__).with_name("probe_artifact")
EXPECTED = "expected.safetensors"
"""File of the batch, the losses of the steps, and the gradients before the first, each behind `GRADIENT`."""
GRADIENT = "gradient/"
LR = 1e-2
STEPS = 3
"""Steps of AdamW whose losses are compared."""
_TIMED_STEPS = 20
_TOLERANCES: dict[Precision, float] = {
    # Measured against float64: 4e-7 to 9e-7. The rounding of TF32, 2^-11, is ten times this.
    "float32": 5e-5,
    # Measured: 1.2e-2 in bfloat16 (OpenVINO), 5e-4 in float16 (the graphs on the CPU).
    "bfloat16": 5e-2,
    "float16": 5e-3,
}


@dataclass(frozen=True)
class Trained:
    """A probe that went well."""

    placement: Placement
    step_ms: float
    """Median milliseconds of a step, until its loss was read."""
    difference: float
    """Largest relative difference of a loss or gradient from float64."""


@dataclass(frozen=True)
class Finding:
    """What became of the probe in one precision."""

    precision: str
    step_ms: float | None = None
    difference: float | None = None
    placement: Placement | None = None
    devices: tuple[str, ...] = ()
    """Devices that the runtime lists for the provider."""
    reason: str = ""
    """Why it does not work; empty where it does."""
    lack: Lack | None = None
    """What is missing, where it does not load for that."""


def train_probe(asked: Execution) -> Trained:
    """Gradients and steps on `asked`, compared with those of torch in float64.

    Raises:
        ProviderError: the provider is absent, does not load, fails, or computes wrongly.
    """
    expected = load_file(ARTIFACT / EXPECTED)
    batch = {name: expected[name] for name in ("image", "labels")}
    # In a copy: an installer may have linked the package's files, and caches do not belong into it.
    with tempfile.TemporaryDirectory(prefix="onnxft-probe-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "probe"
        shutil.copytree(ARTIFACT, folder)
        with TrainSession(
            folder, asked.provider, precision=asked.precision, device=asked.device, threads=asked.threads,
            provider_options=asked.options, strict=asked.strict,
        ) as session:  # fmt: skip
            gradients = session.gradients(batch)
            losses = [session.step(batch, lr=LR).loss for _ in range(STEPS)]
            difference = _compare(asked, expected, gradients, losses)
            return Trained(session.placement, _time(session, batch), difference)


def main(name: str, findings: str) -> int:
    """Try every precision of a provider, a line of JSON for each; a crash leaves the lines before it."""
    with Path(findings).open("wb") as file:
        for precision in provider(name).precisions:
            finding = _find(name, precision)
            file.write(msgspec.json.encode(finding) + b"\n")
            file.flush()
            if precision == "float32" and finding.reason:
                break  # what does not load will not in another precision, and may take its time again
    return 0


def read_findings(file: Path) -> list[Finding]:
    """What `main` wrote, without a last line that a crash cut off."""
    found = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            found.append(msgspec.json.decode(line, type=Finding))
        except msgspec.DecodeError:
            break
    return found


def _find(name: str, precision: Precision) -> Finding:
    try:
        trained = train_probe(Execution(name, precision, threads=1))
    except LackError as err:
        return Finding(precision, reason=str(err), lack=err.lack)
    except OnnxftError as err:
        return Finding(precision, reason=str(err))
    except Exception as err:  # the edge of the process: whatever went wrong is the finding, its trace is in the log
        traceback.print_exc()
        return Finding(precision, reason=f"{type(err).__name__}: {first_line(err)}.")
    return Finding(precision, trained.step_ms, trained.difference, trained.placement, _devices(name))


def _devices(name: str) -> tuple[str, ...]:
    ort = runtime()
    found = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else ()
    return tuple(f"{d.device.vendor} {d.device.type.name}" for d in found if d.ep_name == provider(name).runtime_name)


def _compare(asked: Execution, expected: Arrays, gradients: Arrays, losses: list[float]) -> float:
    """The largest difference relative to what is expected; ProviderError where it is too large."""
    differences = {
        f"the gradient of '{key.removeprefix(GRADIENT)}'": _distance(gradients[key.removeprefix(GRADIENT)], value)
        for key, value in expected.items()
        if key.startswith(GRADIENT)
    }
    for i, (loss, value) in enumerate(zip(losses, expected["losses"], strict=True), 1):
        differences[f"the loss of step {i}"] = _distance(np.asarray(loss), value)
    # A NaN is larger than everything.
    what = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    tolerance = _TOLERANCES[asked.precision]
    if not differences[what] <= tolerance:
        raise ProviderError(
            f"provider '{asked.provider}' computes wrongly: {what} differs from float64 by {differences[what]:.1e} "
            f"relative, where {asked.precision} may differ by {tolerance:.0e}. Update its package and driver, or use "
            "another provider."
        )
    return differences[what]


def _distance(value: Array, expected: Array) -> float:
    """|value - expected| / |expected| in the Euclidean norm."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def _time(session: TrainSession, batch: Arrays) -> float:
    times = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        session.step(batch, lr=0).loss  # noqa: B018 - reading it waits for the device
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
