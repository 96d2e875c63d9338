from __future__ import annotations

import warnings

import pytest

from onnxft.training.schedules import factor

torch = pytest.importorskip("torch", reason="torch gives the expected numbers")
from torch.optim import lr_scheduler as schedules  # noqa: E402

PEAK = 0.3


def torch_rates(make_scheduler, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            # One step past the end, which these schedulers take as a mistake; the rate is not read any more.
            warnings.simplefilter("ignore")
            if len(rates) < total:
                scheduler.step()
    return rates


def warm(n, make_rest):
    """Torch's chain of a linear warm-up over n updates and another schedule."""
    return lambda o: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, 1 / (n + 1), total_iters=n), make_rest(o)],
        milestones=[n],
    )


CASES = {
    "constant": ("constant", 7, None, lambda o: schedules.ConstantLR(o, factor=1)),
    "linear": ("linear", 7, None, lambda o: schedules.LinearLR(o, 1, 0, total_iters=7)),
    "cosine": ("cosine", 11, None, lambda o: schedules.CosineAnnealingLR(o, T_max=11)),
    "cosine, one update": ("cosine", 1, None, lambda o: schedules.CosineAnnealingLR(o, T_max=1)),
    "cosine after warm-up": ("cosine", 20, 0.3, warm(6, lambda o: schedules.CosineAnnealingLR(o, T_max=14))),
    "linear after warm-up": ("linear", 10, 0.25, warm(2, lambda o: schedules.LinearLR(o, 1, 0, total_iters=8))),
    "constant after warm-up": ("constant", 10, 0.5, warm(5, lambda o: schedules.ConstantLR(o, factor=1))),
    "onecycle": ("onecycle", 37, None, lambda o: schedules.OneCycleLR(o, PEAK, total_steps=37)),
    "onecycle, short": ("onecycle", 2, None, lambda o: schedules.OneCycleLR(o, PEAK, total_steps=2)),
    "onecycle, rise": ("onecycle", 20, 0.6, lambda o: schedules.OneCycleLR(o, PEAK, total_steps=20, pct_start=0.6)),
    "onecycle, no rise": ("onecycle", 9, 0, lambda o: schedules.OneCycleLR(o, PEAK, total_steps=9, pct_start=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rates_equal_torch(case):
    schedule, total, warmup, make_scheduler = CASES[case]
    ours = [PEAK * factor(schedule, t, total, warmup) for t in range(total)]
    assert ours == pytest.approx(torch_rates(make_scheduler, total), rel=1e-9)


STEPS = {
    # updates of each epoch, step_size, gamma, warmup
    "every epoch": ([3] * 4, 1, 0.5, None),
    "every third epoch": ([2] * 8, 3, 0.1, None),
    "epochs of unequal length": ([3, 4, 3, 4], 2, 0.3, None),
    "longer than the run": ([2] * 3, 5, 0.1, None),
    "rising rate": ([2] * 4, 1, 1.5, None),
    "after warm-up": ([5] * 4, 2, 0.2, 0.25),
    "warm-up over a step": ([5] * 4, 1, 0.2, 0.4),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_equal_torch_stepped_after_each_epoch(case):
    updates, size, gamma, warmup = STEPS[case]
    total = sum(updates)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    n = round((warmup or 0) * total)
    by_epoch = schedules.StepLR(optimizer, size, gamma)
    by_update = schedules.LinearLR(optimizer, 1 / (n + 1), total_iters=n) if n else None
    expected, ours = [], []
    for epoch, count in enumerate(updates):
        for _ in range(count):
            expected.append(optimizer.param_groups[0]["lr"])
            ours.append(PEAK * factor("step", len(ours), total, warmup, epoch=epoch, size=size, gamma=gamma))
            optimizer.step()
            if by_update:
                by_update.step()
        by_epoch.step()
    assert ours == pytest.approx(expected, rel=1e-9)


def test_a_rise_of_one_update_starts_at_the_peak():
    # torch divides zero by zero here.
    assert factor("onecycle", 0, 4, warmup=0.25) == 1
