"""Steps of onnxsim's training loop and gradients of onnx-ad beside ours, on the tasks of the benchmark.

`python tools/peer_steps.py ARTIFACTS`, where `tools/benchmark_tasks.py --out DIR` left its artifacts (DIR/artifacts).
Both peers rewrite ONNX files as onnxft does, and run on the same onnxruntime. They get the model of each artifact as it
is for inference, with its batch fixed and a cross entropy behind it; what they cannot express is told in their words.
Steps are Adam's (ours AdamW's), gradients go through numpy on both sides. Each side has a process of its own.
`benchmark_tasks.py --peers` puts the table into its summary. Needs the packages onnxsim==0.8.1 and onnx-ad==0.3.0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper

import onnxft
from onnxft.manifest import LABELS, Manifest
from onnxft.memory import peak_resident_bytes
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.providers import first_line
from onnxft.runtime.random_batch import random_batch

WARMUP, STEPS, LR = 3, 15, 1e-3
THREADS = 2
TIME_LIMIT = 300
"""Seconds of a side."""


def fixed(artifact: Path, manifest: Manifest) -> onnx.ModelProto:
    """The inference model at the artifact's batch."""
    model = onnx.load(artifact / manifest.graph("infer").file)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = manifest.batch_size
    return model


def with_loss(model: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """The model with one-hot labels `target` and the output `loss`, a scalar, in the place of its own."""
    rows, logits = manifest.batch_size, manifest.loss.output
    target = helper.make_tensor_value_info("target", TensorProto.FLOAT, [rows, manifest.loss.num_classes])
    model.graph.input.append(target)
    model.graph.initializer.append(helper.make_tensor("minus_one_row", TensorProto.FLOAT, [], [-1 / rows]))
    model.graph.node.extend(
        [
            helper.make_node("Softmax", [logits], ["probabilities"], axis=-1),
            helper.make_node("Log", ["probabilities"], ["log_probabilities"]),
            helper.make_node("Mul", ["log_probabilities", "target"], ["of_labels"]),
            helper.make_node("ReduceSum", ["of_labels"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "minus_one_row"], ["loss"]),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def to_inputs(model: onnx.ModelProto, names: list[str]) -> list[onnx.TensorProto]:
    """Make inputs of initializers, which are returned."""
    weights = [w for w in model.graph.initializer if w.name in names]
    for weight in weights:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        model.graph.initializer.remove(weight)
    return weights


def batches(manifest: Manifest) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A random batch as onnxft takes it, and as the model of `with_loss` does."""
    batch = random_batch(manifest, manifest.batch_size, 0)
    classes = manifest.loss.num_classes
    assert classes is not None, "the tasks are classifications"
    inputs = {p.name: batch[p.name] for p in manifest.inputs}
    return batch, {**inputs, "target": np.eye(classes, dtype=np.float32)[batch[LABELS]]}


def onnxft_steps(artifact: Path, manifest: Manifest) -> Callable[[], float]:
    """A step that gives the loss."""
    session = onnxft.TrainSession(artifact, threads=THREADS)
    batch, _ = batches(manifest)
    return lambda: session.step(batch, lr=LR).loss


def onnxsim_steps(artifact: Path, manifest: Manifest) -> Callable[[], float]:
    """A step that gives the loss."""
    import onnxsim

    names = [p.name for p in manifest.parameters]
    model = fixed(artifact, manifest)
    # It wants every shape to be known, and its step graphs have opset 17. Weights to be trained are inputs meanwhile,
    # or they would be folded into others.
    weights = to_inputs(model, names)
    simple, _ = onnxsim.simplify(model, check_n=0)
    for value in [v for v in simple.graph.input if v.name in names]:
        simple.graph.input.remove(value)
    simple.graph.initializer.extend(weights)
    model = with_loss(onnx.version_converter.convert_version(simple, 17), manifest)
    for node in model.graph.node:  # opset 17 has it not, and the converter leaves it
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
            node.attribute.remove(attribute)
    loop = onnxsim.compile_training_loop(model, "loss", names)
    _, feeds = batches(manifest)
    return lambda: float(loop(feeds, lr=LR))


def onnxft_gradients(artifact: Path, manifest: Manifest) -> Callable[[], float]:
    """A computation of all gradients that gives their norm."""
    session = onnxft.TrainSession(artifact, threads=THREADS)
    batch, _ = batches(manifest)
    return lambda: norm(list(session.gradients(batch).values()))


def onnx_ad_gradients(artifact: Path, manifest: Manifest) -> Callable[[], float]:
    """A computation of all gradients that gives their norm."""
    import onnx_ad
    import onnxruntime as ort

    model, names = with_loss(fixed(artifact, manifest), manifest), [p.name for p in manifest.parameters]
    _, feeds = batches(manifest)
    feeds |= {weight.name: onnx.numpy_helper.to_array(weight) for weight in to_inputs(model, names)}
    adjoint = onnx_ad.reverse(model, inputs=names, outputs=["loss"], layout="onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(adjoint.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds["adj_loss"] = np.ones([1], np.float32)
    taken = {i.name: feeds[i.name] for i in session.get_inputs()}
    wanted = [f"adj_{name}" for name in names]
    return lambda: norm([np.asarray(g) for g in session.run(wanted, taken)])


def norm(gradients: list[np.ndarray]) -> float:
    """√ Σ g²"""
    return float(np.sqrt(sum(float(np.square(g).sum()) for g in gradients)))


SIDES: dict[str, Callable[[Path, Manifest], Callable[[], float]]] = {
    "steps, onnxft": onnxft_steps,
    "steps, onnxsim": onnxsim_steps,
    "gradients, onnxft": onnxft_gradients,
    "gradients, onnx-ad": onnx_ad_gradients,
}


def measure(side: str, artifact: Path) -> dict[str, float]:
    """Median seconds, peak bytes of this process, and what the first call gave."""
    call = SIDES[side](artifact, load_artifact(artifact))
    first, times = call(), []
    for _ in range(WARMUP - 1):
        call()
    for _ in range(STEPS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"seconds": median(times), "bytes": peak_resident_bytes() or 0, "first": first}


def apart(side: str, artifact: Path) -> dict[str, float] | str:
    """The same in another process; why not, where it fails."""
    command = [sys.executable, __file__, str(artifact), "--side", side]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return f"no result within {TIME_LIMIT} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, float] = json.loads(lines[-1])
        return found
    return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]


def row(task: str, ours: str, theirs: str, artifact: Path, runs: int) -> str:
    """Both sides of one task, in turn, until one fails."""
    found: list[tuple[dict[str, float] | str, ...]] = []
    while len(found) < runs and not (found and any(isinstance(side, str) for side in found[-1])):
        found.append((apart(ours, artifact), apart(theirs, artifact)))
    what, peer = theirs.split(", ")
    for own, other in found:
        if isinstance(own, str):
            return f"| `{task}` | {what} | failed: {own} | - | - | - |"
        if isinstance(other, str):
            return f"| `{task}` | {what} | {_shown([own])} | {peer}: {other} | - | - |"
    pairs = [(own, other) for own, other in found if not isinstance(own, str) and not isinstance(other, str)]
    ratios = [other["seconds"] / own["seconds"] for own, other in pairs]
    around = f" ({min(ratios):.2f} to {max(ratios):.2f})" if runs > 1 else ""
    differ = max(abs(own["first"] - other["first"]) / abs(own["first"]) for own, other in pairs)
    sides = f"{_shown([own for own, _ in pairs])} | {peer}: {_shown([other for _, other in pairs])}"
    return f"| `{task}` | {what} | {sides} | {median(ratios):.2f}{around} | {differ:.0e} |"


def _shown(measured: list[dict[str, float]]) -> str:
    """Medians of time and memory."""
    seconds, size = (median(m[name] for m in measured) for name in ("seconds", "bytes"))
    return f"{seconds * 1e3:.1f} ms, {size / 1e6:.0f} MB"


def table(artifacts: Path, pattern: str, runs: int) -> str:
    """A row for each task and peer; medians, and the least and the greatest ratio.

    Without recomputation, which would be the same model and parameters again.
    """
    lines = ["| task | what | onnxft | peer | times as fast | first result differs by |", "|---|---|---|---|---:|---:|"]
    for artifact in sorted(p.parent for p in artifacts.glob(f"{pattern}/manifest.json")):
        if artifact.name.endswith("-recompute"):
            continue
        for ours, theirs in (("steps, onnxft", "steps, onnxsim"), ("gradients, onnxft", "gradients, onnx-ad")):
            lines.append(row(artifact.name, ours, theirs, artifact, runs))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifacts", type=Path, help="folder of artifacts; with --side one artifact")
    parser.add_argument("--tasks", default="*", metavar="GLOB", help="names of artifacts [all]")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="times that both sides run in turn [3]")
    parser.add_argument("--side", choices=SIDES, help="measure this side alone and print JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.side:
        try:
            print(json.dumps(measure(options.side, options.artifacts)))
        except Exception as err:  # whatever a peer raises is its answer
            raise SystemExit(f"{type(err).__name__}: {first_line(err)}") from err
        return
    print(table(options.artifacts, options.tasks, options.runs))


if __name__ == "__main__":
    main()
