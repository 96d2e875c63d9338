"""What processes do together, with threads in their place: sums, agreement, and ends that all of them share."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from together import together

from onnxft.errors import ConfigError, DataError, ExitStatus, OnnxftError, WriteError
from onnxft.runtime.mpi import joined, require_alone, started_together
from onnxft.runtime.processes import ALONE, Share


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_keep_names_shapes_and_types_in_one_exchange_a_type(size):
    def work(processes):
        r = processes.rank + 1
        values = {
            "a": np.full((2, 3), r, np.float32), "b": np.array(0.5 * r), "c": np.array([r, -r, 1], np.float32),
            "none": np.zeros((0, 4), np.float32),
        }  # fmt: skip
        before = processes.exchanges
        return processes.sum(values), processes.exchanges - before

    total = size * (size + 1) / 2
    for made, exchanges in together(size, work):
        assert list(made) == ["a", "b", "c", "none"]
        assert {n: (v.shape, v.dtype.name) for n, v in made.items()} == {
            "a": ((2, 3), "float32"), "b": ((), "float64"), "c": ((3,), "float32"), "none": ((0, 4), "float32"),
        }  # fmt: skip
        np.testing.assert_array_equal(made["a"], np.full((2, 3), total))
        np.testing.assert_array_equal(made["c"], [total, -total, size])
        assert made["b"] == 0.5 * total
        assert exchanges == 3  # the head, and float32 and float64


def test_one_alone_sums_and_agrees_with_itself():
    assert ALONE.sum({"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert (ALONE.total(4), ALONE.any(True), ALONE.any(False), ALONE.same("x")) == (4, True, False, True)
    assert ALONE.from_first(lambda: "made") == "made"


def test_what_processes_agree_on():
    def work(processes):
        rank = processes.rank
        return [
            processes.total(10 + rank),
            processes.any(rank == 2),
            processes.any(False),
            processes.from_first(lambda: f"from {rank}"),
            processes.same([1, "a"]),
            processes.same(rank > 1),
        ]

    assert together(3, work) == [[33, True, False, "from 0", True, False]] * 3


def test_the_first_thing_that_differs_is_named():
    def work(processes):
        processes.require_same({"artifact": "a" * 64, "data": f"{processes.rank}" * 64}, "Copy it.")

    for error in together(2, work):
        assert isinstance(error, DataError)
        assert "process 1 of 2 has another 'data' than process 0 of 2 (111111111111..., not 0000" in str(error)
        assert str(error).endswith("Copy it.")


class UserError(Exception):
    """Cannot be told to others: pickle does not find its arguments."""

    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


@pytest.mark.parametrize(
    ("error", "kind", "text", "status"),
    [
        (DataError("row 3 is wrong."), DataError, "process 1 of 3: row 3 is wrong.", ExitStatus.DATA),
        (WriteError("f", "full", "whole."), WriteError, "process 1 of 3: 'f' cannot be written", ExitStatus.WRITE),
        (UserError(1, 2), OnnxftError, "process 1 of 3 ended with UserError: 1 2", ExitStatus.INTERNAL),
        (KeyboardInterrupt(), KeyboardInterrupt, "", None),
    ],
)
@pytest.mark.parametrize("call", ["sum", "total", "from_first", "same", "require_same", "end"])
def test_an_error_in_one_process_ends_all_alike_whatever_they_wait_for(error, kind, text, status, call):
    def work(processes):
        processes.total(1)
        if processes.rank == 1:
            raise error
        match call:
            case "sum":
                processes.sum({"a": np.ones(3)})
            case "total":
                processes.total(1)
            case "from_first":
                processes.from_first(lambda: 1)
            case "same":
                processes.same(1)
            case "require_same":
                processes.require_same({"a": 1}, "")
        return "went well"

    results = together(3, work)
    assert results[1] is error
    for rank in (0, 2):
        assert isinstance(results[rank], kind)
        assert text in str(results[rank])
    if status is not None:
        assert results[0].exit_status == status
        assert (results[0].told, results[2].told) == (False, True)


def test_of_two_errors_the_lowest_process_is_heard():
    def work(processes):
        if processes.rank > 0:
            raise DataError(f"of {processes.rank}.")
        processes.total(0)

    assert [str(error).removeprefix("process 1 of 3: ") for error in together(3, work)] == ["of 1."] * 3


def test_an_error_of_what_the_first_makes_reaches_those_who_wait():
    def fail():
        raise ConfigError("no such thing.")

    first, second = together(2, lambda processes: processes.from_first(fail))
    assert (str(first), str(second)) == ("no such thing.", "process 0 of 2: no such thing.")
    assert (first.told, second.told) == (False, True)


def test_processes_in_different_calls_are_found_out():
    def work(processes):
        return processes.any(False) if processes.rank else processes.sum({"a": np.ones(2)})

    for error in together(2, work):
        assert "out of step" in str(error)


@pytest.mark.parametrize(
    ("rows", "processes", "size", "places"),
    [
        (16, 2, 8, [range(0, 8), range(8, 16)]),
        (13, 2, 8, [range(0, 8), range(8, 13)]),
        (9, 2, 8, [range(0, 8), [8]]),
        (8, 2, 8, [range(0, 8), None]),
        (5, 2, 8, [range(0, 5), None]),
        (1, 3, 4, [[0], None, None]),
        (7, 3, 3, [range(0, 3), range(3, 6), [6]]),
        (6, 3, 2, [[0, 1], [2, 3], [4, 5]]),
        (4, 1, 5, [range(0, 4)]),
    ],
)
def test_shares_of_a_batch(rows, processes, size, places):
    for rank, expected in enumerate(places):
        share = Share(rank, processes, size)
        assert share.whole == processes * size
        assert share.is_empty(rows) == (expected is None)
        assert list(range(rows))[share.place(rows)] == ([rows - 1] if expected is None else list(expected))


@pytest.fixture
def no_mpi(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "2"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),
        ({"PMI_SIZE": ""}, 1),
    ],
)
def test_how_many_were_started(no_mpi, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_together() == expected


def test_one_process_needs_no_mpi(no_mpi, monkeypatch):
    for asked in (None, 1):
        with joined(asked) as processes:
            assert processes is ALONE
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with joined(1) as processes:  # runs side by side, each with options of its own
        assert processes is ALONE


def test_copies_of_a_run_are_never_trained_silently(no_mpi, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(ConfigError, match=r"one of 4 processes .* Add --processes 4 .* or --processes 1"), joined(None):
        pass
    with pytest.raises(ConfigError, match="range test is done by one process, not 4"):
        require_alone(None, "the range test")
    require_alone(1, "the range test")


def test_without_mpi4py_the_package_is_named(no_mpi):
    with pytest.raises(ConfigError, match=r"pip install onnxft\[mpi\]"), joined(2):
        pass
