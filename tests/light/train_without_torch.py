"""Train from an artifact in an environment without torch and onnx, to a model that stock onnxruntime loads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

artifact = Path(sys.argv[1])
data, run = artifact.with_suffix(".npz"), artifact.with_name("run")
for name in ("torch", "onnx", "onnx_ir", "onnxscript"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported here, so this proves nothing"
command = [sys.executable, "-m", "onnxft", "train", str(artifact), "--data", str(data), "--epochs", "3"]
subprocess.run([*command, "--run", str(run)], check=True)
images = np.load(data)["image"]
session = onnxruntime.InferenceSession(run / "model.onnx")
(logits,) = session.run(None, {"image": images})
(before,) = onnxruntime.InferenceSession(artifact / "infer.onnx").run(None, {"image": images})
assert logits.shape == (44, 10) and np.isfinite(logits).all()
assert np.abs(logits - before).max() > 1e-3, "the tuned model is the old one"
print("1 passed, 0 failed")
