"""Twenty optimizer steps equal torch's twenty: state moves, in every provider's way of binding it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance_subjects import SUBJECTS, torch_losses
from tolerances import TOLERANCES, side, tolerance

import onnxft
from onnxft.runtime import buffers, keys, providers
from onnxft.runtime.execution import Execution

OPTIMIZERS: dict[str, tuple[dict[str, float], float, Callable[..., torch.optim.Optimizer]]] = {
    "adamw": ({}, 3e-3, lambda p: torch.optim.AdamW(p, lr=3e-3)),
    "sgd": ({"momentum": 0.9}, 0.02, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
}
TOLERANCE = TOLERANCES["float32"].losses
NAMES = (
    "mlp", "mlp_regression", "convnet", "shared_conv", "normed", "gru_states", "embedding", "transformer",
)  # fmt: skip


def largest_difference(name: str, optimizer: str, execution: Execution, artifact_of: Callable[..., Path]) -> float:
    """Largest relative difference of the losses of 20 steps from torch's."""
    subject, (options, lr, make) = SUBJECTS[name], OPTIMIZERS[optimizer]
    batches = subject.batches(20)
    expected = torch_losses(subject, make, batches)
    artifact = artifact_of(subject, optimizer, **options)
    with onnxft.TrainSession(artifact, execution.provider, precision=execution.precision, threads=2) as session:
        found = [session.step(batch, lr=lr).loss for batch in batches]
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_equal_torch(
    name: str, optimizer: str, execution: Execution, artifact_of: Callable[..., Path]
) -> None:
    difference = largest_difference(name, optimizer, execution, artifact_of)
    print(f"{name}, {optimizer} on {side(execution)}: {difference:.1e}")
    assert difference <= tolerance(execution).losses


def test_inputs_that_are_copied_when_bound_would_be_found(
    monkeypatch: pytest.MonkeyPatch, artifact_of: Callable[..., Path]
) -> None:
    """A provider that copies inputs when they are bound reads stale parameters from the second step on."""
    bind = buffers.BoundRunner._bind
    copies = []  # a binding does not keep its buffers alive

    def bind_copies(runner: buffers.BoundRunner) -> Any:
        binding = bind(runner)
        for port in runner._graph.inputs:
            key = keys.key_of(port)
            if key is not None:
                copies.append(buffers.ort_value(runner._store.read(key)))
                binding.bind_ortvalue_input(port.name, copies[-1])
        return binding

    monkeypatch.setattr(buffers.BoundRunner, "_bind", bind_copies)
    assert largest_difference("convnet", "sgd", Execution("cpu"), artifact_of) > 100 * TOLERANCE


def test_the_plug_in_copies_inputs_when_they_are_bound(
    monkeypatch: pytest.MonkeyPatch, artifact_of: Callable[..., Path]
) -> None:
    entry = providers.PROVIDERS["openvino"]
    if providers.is_builtin(entry) or not providers.plugin_devices(entry):
        pytest.skip("the OpenVINO plug-in offers no device here (the runtime with OpenVINO inside does not copy)")
    monkeypatch.setitem(providers.PROVIDERS, "openvino", dataclasses.replace(entry, binding="bound"))
    assert largest_difference("convnet", "sgd", Execution("openvino"), artifact_of) > 100 * TOLERANCE


def test_float32_is_asked_for_and_bfloat16_would_be_found(
    monkeypatch: pytest.MonkeyPatch, provider: str, artifact_of: Callable[..., Path]
) -> None:
    if provider != "openvino":
        pytest.skip(f"'{provider}' has no default below float32")
    entry = providers.PROVIDERS["openvino"]
    with onnxft.TrainSession(artifact_of(SUBJECTS["mlp"]), provider, threads=2) as session:
        assert json.loads(session.placement.options["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"] == "f32"
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists() or not {"avx512_bf16", "amx_bf16"} & set(cpu_info.read_text().split()):
        pytest.skip("this processor has no bfloat16, so another hint would change nothing")

    def lower(asked: Execution) -> dict[str, str]:
        return {"device_type": "CPU", "load_config": json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})}

    monkeypatch.setitem(providers.PROVIDERS, "openvino", dataclasses.replace(entry, options=lower))
    assert largest_difference("convnet", "sgd", Execution(provider), artifact_of) > TOLERANCE


def test_the_reference_moves() -> None:
    for optimizer, (_, _, make) in OPTIMIZERS.items():
        losses = torch_losses(SUBJECTS["mlp"], make, SUBJECTS["mlp"].batches(1) * 20)
        assert np.all(np.diff(losses) < -1e-4), optimizer
