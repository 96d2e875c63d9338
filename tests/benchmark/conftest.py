"""A manifest for tests that need no graph, and interpreters that stand in for a side's."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.report import Report
from onnxft.benchmark.run import bench
from onnxft.benchmark.shared import SharedBaselines
from onnxft.manifest import BATCH, FILE_NAME, GraphFile, Loss, Manifest, Optimizer, Parameter, Port
from onnxft.manifest_file import manifest_json


def _manifest(*, random: bool = False) -> Manifest:
    inputs = (
        Port("image", "input", "float32", (BATCH, 3, 5, 7)),
        Port("mask", "input", "int64", (BATCH, 11)),
        Port("labels", "label", "int64", (BATCH,)),
    )
    masks = (Port("mask_0", "random", "float32", (BATCH, 4)),) if random else ()
    return Manifest(
        name="fake",
        generator="native",
        batch_size=6,
        graphs={"train": GraphFile("train.onnx", (*inputs, *masks)), "eval": GraphFile("eval.onnx", inputs)},
        parameters=(Parameter("fc.weight", (4, 3), "float32"), Parameter("fc.bias", (4,), "float32")),
        loss=Loss("cross_entropy", "logits", num_classes=4),
        optimizer=Optimizer("adamw", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, weight_decay=0.01),
        frozen_parameters=84,
        files={"train.onnx": "0" * 64, "eval.onnx": "0" * 64},
    )


def _artifact(directory: Path, *, random: bool = False) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / FILE_NAME).write_bytes(manifest_json(_manifest(random=random)))
    return directory


def _interpreter(path: Path, body: str) -> str:
    """An executable that is started in the place of a side's Python; `body` sees `request`, a dict, and `respond`."""
    prelude = """
        import json, os, sys, time
        from pathlib import Path
        import numpy as np
        from safetensors.numpy import save_file
        request = json.loads(Path(sys.argv[-1]).read_text())
        def respond(seconds, loss=1.5, scale=1.0, **changes):
            save_file({"fc.weight": np.full((4, 3), scale, np.float32), "fc.bias": np.ones(4, np.float32)},
                      request["gradients"])
            measurement = dict(
                provider_requested=request["side"]["name"], provider_obtained=request["side"]["name"],
                nodes={request["side"]["name"]: 30, "cpu": 2}, fallback_nodes=2, versions={"fake": "1"},
                build_seconds=0.5, first_step_seconds=0.25, warmup_seconds=[0.2], step_seconds=seconds,
                peak_rss_bytes=123_000_000, loss=loss) | changes
            Path(request["result"]).write_text(json.dumps({"measurement": measurement}))
    """
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(prelude)}\n{textwrap.dedent(body)}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake_manifest() -> Callable[..., Manifest]:
    return _manifest


@pytest.fixture
def fake_artifact() -> Callable[..., Path]:
    return _artifact


@pytest.fixture
def fake_interpreter() -> Callable[[Path, str], str]:
    return _interpreter


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Report]:
    """bench() in which every side is played by a script, {side: body}; those with torch in their name are baselines."""

    def run(
        sides: dict[str, str],
        *,
        random: bool = False,
        keep_logs: Path | None = None,
        shared: SharedBaselines | None = None,
        **options: Any,
    ) -> Report:
        artifact = _artifact(tmp_path / "artifact", random=random)
        config = BenchConfig(
            providers=tuple(s for s in sides if "torch" not in s),
            baselines=tuple(s for s in sides if "torch" in s),
            source="module:factory" if any("torch" in s for s in sides) else None,
            python={s: _interpreter(tmp_path / f"python_{s}", body) for s, body in sides.items()},
            **options,
        )
        return bench(artifact, config, keep_logs=keep_logs, shared=shared)

    return run
