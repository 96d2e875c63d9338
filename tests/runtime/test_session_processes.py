"""Sessions of several processes on the shares of a batch equal one session on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_session_sizes import text_artifact, texts  # noqa: F401
from together import together

from onnxft.errors import ConfigError, DataError
from onnxft.manifest_file import read_manifest
from onnxft.runtime.processes import Processes, require_divisible
from onnxft.runtime.session import TrainSession

SIZE = 4
RNG = np.random.default_rng(6)
Work = Callable[[TrainSession, Callable[[dict[str, Any]], dict[str, Any]]], Any]


def rows(number: int, seed: int, **more: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((number, 7)).astype(np.float32), "labels": rng.integers(0, 3, number), **more}


def shared(artifact: Path, size: int, work: Work, **options: Any) -> list[Any]:
    """What `work(session, share of)` gives in each process, and the parameters after it."""

    def run(processes: Processes) -> Any:
        with TrainSession(artifact, threads=1, seed=9, batch_size=SIZE, processes=processes, **options) as session:

            def share_of(batch: dict[str, Any]) -> dict[str, Any]:
                number = len(batch["labels"])
                mine = {name: array[session.share.place(number)] for name, array in batch.items()}
                empty = {"sample_weights": np.zeros(len(mine["labels"]), np.float32)}
                return mine | (empty if session.share.is_empty(number) else {})

            return work(session, share_of), session.parameters

    return together(size, run)


def alone(artifact: Path, size: int, work: Work, **options: Any) -> Any:
    with TrainSession(artifact, threads=1, seed=9, batch_size=SIZE * size, **options) as session:
        return work(session, lambda batch: batch), session.parameters


def assert_equal(
    artifact: Path, size: int, work: Work, noise: Collection[str] = (), tolerance: float = 1e-6, **options: Any
) -> None:
    numbers, parameters = alone(artifact, size, work, **options)
    results = shared(artifact, size, work, **options)
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found, own = result
        np.testing.assert_allclose(found, numbers, rtol=2 * tolerance)
        for name, expected in parameters.items():
            difference = np.linalg.norm((own[name] - expected).astype(np.float64))
            assert name in noise or difference <= tolerance * np.linalg.norm(expected.astype(np.float64)), name
            assert own[name].tobytes() == results[0][1][name].tobytes()  # the same bits in all processes


WEIGHTS = np.array([0, 0, 0, 0, 2.5, 0, 0.5, 1], np.float32)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("size", "numbers", "weights"),
    [(2, [8, 8, 8], None), (2, [7, 3, 8, 1], None), (3, [12, 5, 9, 2], None), (2, [8, 8], WEIGHTS)],
    ids=["whole", "short, and a share of none", "three", "a share that weighs nothing"],
)  # fmt: skip
def test_steps_with_dropout(exported: Any, optimizer: str, size: int, numbers: list[int], weights: Any) -> None:
    """Random masks are those of the large batch, so losses agree as well."""

    def work(session: TrainSession, share_of: Any) -> list[float]:
        results = []
        for step, number in enumerate(numbers):
            more = {} if weights is None else {"sample_weights": weights}
            results.append(session.step(share_of(rows(number, step, **more)), lr=0.05))
        return [n for r in results for n in (r.loss, r.weight_sum, *r.metrics.values())]

    assert_equal(exported("dropped", optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else None), size, work)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_in_float64_nothing_is_left_of_the_difference(exported: Any, optimizer: str) -> None:
    def work(session: TrainSession, share_of: Any) -> list[float]:
        batches = ({**made, "x": made["x"].astype(np.float64)} for made in (rows(12 - n % 4, n) for n in range(50)))
        return [session.step(share_of(batch), lr=0.01).loss for batch in batches]

    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    artifact = exported("dropped", optimizer=optimizer, dtype="float64", **options)
    assert_equal(artifact, 3, work, tolerance=1e-13)


def test_accumulation_clipping_and_averages(exported: Any) -> None:
    def work(session: TrainSession, share_of: Any) -> list[float]:
        losses = []
        for step in range(3):
            losses += [session.accumulate(share_of(rows(n, 10 * step + n))).loss for n in (8, 8, 3)]
            session.update(lr=0.05, max_norm=0.3, max_value=0.2)
            losses.append(session.step(share_of(rows(6, step)), lr=0.01, max_norm=0.1).loss)
            session.average(0.9)
        return [*losses, *(float(np.linalg.norm(v)) for v in session.averages.values())]

    assert_equal(exported("dropped"), 2, work)


def test_gradients_are_those_of_the_mean_over_all_rows(exported: Any) -> None:
    def work(session: TrainSession, share_of: Any) -> list[float]:
        batch = share_of(rows(7, 0))
        found = session.gradients(batch)
        session.step(batch, lr=0.05)  # nothing is left accumulated
        return [float(np.linalg.norm(g)) for g in found.values()]

    assert_equal(exported("dropped"), 2, work)


def test_masks_of_several_sizes_of_texts(text_artifact: Callable[[float], Path]) -> None:  # noqa: F811
    def work(session: TrainSession, share_of: Any) -> list[float]:
        return [session.step(share_of(texts(size, n, 8)), lr=0.01).loss for n, size in enumerate((12, 6, 6, 12))]

    # A bias of all keys shifts the scores of a row alike: its gradient is rounding alone, which AdamW scales up.
    assert_equal(text_artifact(0.5), 2, work, noise={"key.bias"}, dimensions={"sequence": (6, 12)})


def test_a_batch_of_which_nothing_counts_is_an_error_in_all(exported: Any) -> None:
    def step(session: TrainSession, share_of: Any) -> None:
        session.step(share_of(rows(8, 0, sample_weights=np.zeros(8, np.float32))), lr=0.1)

    for error in shared(exported("dropped"), 2, step):
        assert isinstance(error, DataError)
        assert "no mean gradient" in str(error)


def test_a_bad_row_in_one_share_is_named_as_in_the_large_batch(exported: Any) -> None:
    def step(session: TrainSession, share_of: Any) -> None:
        batch = rows(8, 0)
        batch["labels"][6] = 7
        session.step(share_of(batch), lr=0.1)

    for error in shared(exported("dropped"), 2, step):
        assert isinstance(error, DataError)
        assert "'labels' has the value 7 at row 6" in str(error)


def test_all_go_on_from_the_first(exported: Any, tmp_path: Path) -> None:
    """One of them has read a checkpoint: the others get parameters, optimizer state, averages and counters."""
    artifact = exported("dropped")

    def before(session: TrainSession) -> None:
        for step in range(3):
            session.step(rows(8, step), lr=0.05)
            session.average(0.8)

    with TrainSession(artifact, threads=1, seed=4, batch_size=8) as session:
        before(session)
        session.save_checkpoint(tmp_path / "c")

    def work(session: TrainSession, share_of: Any) -> list[float]:
        if session.processes.size == 1 or session.processes.rank == 0:
            session.load_checkpoint(tmp_path / "c")
        session.take_from_first()
        loss = session.step(share_of(rows(8, 7)), lr=0.05).loss
        session.average(0.8)
        return [loss, session.step_count, session.seed, *(float(np.linalg.norm(v)) for v in session.averages.values())]

    assert_equal(artifact, 2, work)


class Two(Processes):
    size = 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_batchnorm": ("bn1",)}, r"BatchNorm 'bn1' trains on the statistics of the whole batch"),
        ({"scalar": True}, "computes the loss 'y' itself, as one number for the whole batch"),
        ({"generator": "ort-training"}, "stay in its worker process, and are not summed over several"),
    ],
)
def test_what_cannot_be_divided_is_refused(exported: Any, change: dict[str, Any], reason: str) -> None:
    if "train_batchnorm" in change:
        with pytest.raises(ConfigError, match=reason):
            TrainSession(exported("normed", **change), processes=Two())
        return
    manifest = read_manifest(exported("dropped"))
    if "scalar" in change:
        manifest = replace(manifest, loss=replace(manifest.loss, kind="model", output="y", scalar=True))
    else:
        manifest = replace(manifest, **change)
    with pytest.raises(ConfigError, match=f"cannot be trained in 2 processes: .*{reason}"):
        require_divisible(manifest, Two())
    require_divisible(manifest, Processes())
