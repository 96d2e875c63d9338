"""Row 29 of the reported traps: memory does not grow from step to step, and recomputation takes less of it.

Measured in processes of their own, which have neither torch nor onnx.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import onnxft
from onnxft.memory import peak_resident_bytes

pytestmark = pytest.mark.skipif(peak_resident_bytes() is None or sys.platform != "linux", reason="only Linux tells it")

STEPS = (4, 40)
STEPPED = """
import json, sys
from pathlib import Path
from onnxft.memory import peak_resident_bytes
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.memory_estimate import MemoryModel, Use
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession
path, rows, recompute, steps = Path(sys.argv[1]), *json.loads(sys.argv[2])
manifest = load_artifact(path)
estimate = MemoryModel(path, manifest).estimate([{"batch": rows}], Use(recompute=recompute)).total
peaks = []
with TrainSession(path, threads=1, batch_size=rows, recompute=recompute) as session:
    batches = [random_batch(manifest, n, 0) for n in (rows, rows // 3)]  # the second is filled up
    for step in range(1, max(steps) + 1):
        session.step(batches[step % 2], lr=1e-3)
        if step in steps:
            peaks.append(peak_resident_bytes())
print(json.dumps([peaks, estimate]))
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = pytest.importorskip("models", reason="torch, of which the models are, is not installed here")
    return onnxft.export(*models.deep(), tmp_path_factory.mktemp("memory") / "deep", recompute=True)


def measured(artifact: Path, rows: int, *, recompute: bool) -> tuple[list[int], int]:
    """Peak bytes after so many `STEPS`, and the estimate."""
    arguments = [str(artifact), json.dumps([rows, recompute, STEPS])]
    done = subprocess.run(
        [sys.executable, "-c", STEPPED, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks, estimate = json.loads(done.stdout)
    return peaks, estimate


@pytest.mark.filterwarnings("ignore")
def test_memory_stays_and_recomputation_takes_less(artifact: Path) -> None:
    kept, again = (measured(artifact, 48, recompute=recompute) for recompute in (False, True))
    for (first, last), estimate in (kept, again):
        print(f"MB after {STEPS} steps: {first / 1e6:.0f}, {last / 1e6:.0f}; estimated {estimate / 1e6:.0f}")
        assert last - first <= 0.02 * first
        assert 0.8 <= estimate / last <= 1.2
    saved = kept[0][1] - again[0][1]
    assert saved > 0.2 * kept[0][1]
