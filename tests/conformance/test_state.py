"""What lives between steps is really there: it moves as torch's does, and survives the session.

Every provider is held to exact repetition; none is known here that adds in another order from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance_subjects import SUBJECTS, Subject
from tolerances import tolerance

import onnxft
from onnxft.runtime.execution import Execution, Precision
from onnxft.runtime.precision import processor_flags

Opened = Callable[..., onnxft.TrainSession]
OPTIMIZERS: dict[str, tuple[dict[str, float], float, Callable[..., torch.optim.Optimizer], tuple[str, ...]]] = {
    "adamw": ({}, 3e-3, lambda p: torch.optim.AdamW(p, lr=3e-3), ("exp_avg", "exp_avg_sq")),
    "sgd": ({"momentum": 0.9}, 0.02, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), ("momentum_buffer",)),
}
BOTH = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def everything(session: onnxft.TrainSession) -> dict[str, np.ndarray]:
    """Parameters, optimizer state and averages."""
    averages = {f"{n}/average": v for n, v in session._engine.averages().items()}
    return {**session.parameters, **session._engine.state(), **averages}


def moved_in_torch(
    subject: Subject, optimizer: str, batches: list[dict[str, np.ndarray]], precision: Precision
) -> dict[str, np.ndarray]:
    """Parameters and state after torch's own steps, in a lower precision under autocast."""
    _, _, make, slots = OPTIMIZERS[optimizer]
    module = subject.module()
    stepper = make(module.parameters())
    for batch in batches:
        stepper.zero_grad()
        with torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
            loss = subject.mean_loss(module, batch)
        loss.backward()
        stepper.step()
    found = {}
    for name, p in module.named_parameters():
        if p.grad is not None:
            found |= {name: p.detach().numpy(), **{f"{name}/{slot}": stepper.state[p][slot].numpy() for slot in slots}}
    return found


@pytest.mark.parametrize("name", ["convnet", "embedding"])
@BOTH
def test_parameters_and_state_move_as_in_torch(
    name: str, optimizer: str, execution: Execution, opened: Opened, request: pytest.FixtureRequest
) -> None:
    """Row 21 of the reported traps: trainables are inputs and outputs of a session that is never built anew."""
    if name == "convnet" and execution.precision == "bfloat16" and "amx_bf16" not in (processor_flags() or ()):
        reason = (
            "with AVX-512 and without AMX OpenVINO rounds otherwise (Zen 4): of AdamW's exp_avg_sq 5.5e-8 off where "
            "4.6e-8 are allowed, of SGD's momentum_buffer 6.57e-3 where 6.50e-3 are"
        )
        request.applymarker(pytest.mark.xfail(reason=reason))
    subject, (options, lr, _, _) = SUBJECTS[name], OPTIMIZERS[optimizer]
    batches = subject.batches(3)
    expected = moved_in_torch(subject, optimizer, batches, "float32")
    # In a lower precision an activation at the kink of a Relu may change sides, in torch as well.
    own = moved_in_torch(subject, optimizer, batches, execution.precision)
    with opened(subject, execution, optimizer, **options) as session:
        before = everything(session)
        for batch in batches:
            session.step(batch, lr=lr)
        after = everything(session)
    assert set(after) == set(expected)
    for key, value in expected.items():
        allowed = max(tolerance(execution).values * np.abs(value).max(), 2 * np.abs(own[key] - value).max())
        assert np.abs(after[key] - value).max() <= allowed, key
        # Of a convolution's bias before a frozen norm the second moment is small; still it is not what it was.
        assert not np.array_equal(after[key], before[key]), key


@BOTH
def test_a_run_repeats_and_continues_exactly(
    optimizer: str, execution: Execution, opened: Opened, tmp_path: Path
) -> None:
    """Two runs agree bit for bit, and so does a third whose session is closed and rebuilt in the middle."""
    subject, (options, lr, _, _) = SUBJECTS["convnet"], OPTIMIZERS[optimizer]
    batches = subject.batches(6)
    ends = []
    for broken in (False, False, True):
        session = opened(subject, execution, optimizer, **options)
        for i, batch in enumerate(batches):
            if broken and i == 3:
                session.save_checkpoint(tmp_path / "checkpoint")
                session.close()
                session = opened(subject, execution, optimizer, **options)
                session.load_checkpoint(tmp_path / "checkpoint")
            session.step(batch, lr=lr)
            session.average(0.9)
        ends.append((everything(session), session.evaluate(batches[0]).loss))
        session.close()
    for values, loss in ends[1:]:
        assert {k for k, v in values.items() if v.tobytes() != ends[0][0][k].tobytes()} == set()
        assert loss == ends[0][1]


@pytest.mark.parametrize("name", ["mlp", "embedding"])
def test_accumulation_equals_a_step(name: str, execution: Execution, opened: Opened) -> None:
    """Two halves accumulated, and one update from them, are one step on the whole batch."""
    subject = SUBJECTS[name]
    batches = subject.batches(3)
    ends = []
    for split in (False, True):
        with opened(subject, execution) as session:
            for batch in batches:
                if split:
                    for half in (slice(0, 3), slice(3, None)):
                        session.accumulate({k: v[half] for k, v in batch.items()})
                    session.update(lr=3e-3)
                else:
                    session.step(batch, lr=3e-3)
            ends.append(session.parameters)
    for key, value in ends[0].items():
        assert np.abs(ends[1][key] - value).max() <= tolerance(execution).values * np.abs(value).max(), key


def test_evaluation_sees_the_weights_of_now(execution: Execution, opened: Opened) -> None:
    subject = SUBJECTS["convnet"]
    (batch,) = subject.batches(1)
    module = subject.module()
    with opened(subject, execution) as session:
        losses = []
        for _ in range(3):
            losses.append(session.evaluate(batch).loss)
            module.load_state_dict({n: torch.tensor(v) for n, v in session.parameters.items()}, strict=False)
            with torch.no_grad():
                expected = subject.mean_loss(module, batch).item()
            assert losses[-1] == pytest.approx(expected, rel=tolerance(execution).losses)
            session.step(batch, lr=3e-2)
    assert len(set(losses)) == 3
    assert losses[0] != pytest.approx(losses[-1], rel=tolerance(execution).losses)
