"""Every check passes with its guard in place, and fails with the guard taken out: then the defect is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_guards import GUARDS as CRASHES
from guarding import Guard
from silent_guards import GUARDS as SILENT
from silent_guards import frozen_batch_norm_stays_frozen

pytestmark = pytest.mark.usefixtures("ort_python")
each_guard = pytest.mark.parametrize("guard", [*SILENT, *CRASHES], ids=lambda guard: guard.defect)


@each_guard
def test_the_guard_holds(guard: Guard, tmp_path: Path) -> None:
    guard.check(tmp_path)


@each_guard
def test_without_the_guard_the_defect_is_there(guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.without(monkeypatch, tmp_path)
    guard.shows_itself(tmp_path)


@pytest.mark.parametrize("trained", [(0, 4), (0, 1, 4), (1,)])
def test_frozen_statistics_stay_wherever_the_gradient_goes(trained: tuple[int, ...], tmp_path: Path) -> None:
    frozen_batch_norm_stays_frozen(trained, tmp_path)
