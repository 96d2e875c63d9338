"""With fixed dimensions nothing of a training graph is left that only computes shapes (trap L7)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("transformers", reason="transformers is not installed here")

import torch
from transformers_models import MODELS, ROWS

import onnxft
from onnxft.manifest import BATCH

SHAPES = {"Shape", "Size", "Range", "ConstantOfShape", "NonZero"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_the_runtime_folds_all_shape_arithmetic(name: str, recompute: bool, tmp_path: Path) -> None:
    model = MODELS[name]
    (batch,) = model.batches(1)
    examples = {n: torch.tensor(v) for n, v in batch.items() if n != "labels"}
    symbolic = {n: {1: "sequence"} for n in examples if n != "pixel_values"}
    artifact = onnxft.export(
        model.module(), examples, tmp_path / name, dynamic_shapes=symbolic, batch_size=ROWS, recompute=recompute
    )
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    for dimension, size in {BATCH: ROWS, "sequence": 9}.items():
        options.add_free_dimension_override_by_name(dimension, size)
    ort.InferenceSession(artifact / "train.onnx", options, providers=["CPUExecutionProvider"])
    written = onnx.load(artifact / "train.onnx", load_external_data=False)
    kept = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    before, after = (Counter(node.op_type for node in m.graph.node) for m in (written, kept))
    print(f"{name}: {sum(before.values())} nodes written, {sum(after.values())} run")
    assert {op_type: n for op_type, n in after.items() if op_type in SHAPES} == {}
