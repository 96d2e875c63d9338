from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed here")


@pytest.fixture(scope="module")
def tool() -> Any:
    path = Path(__file__).parents[2] / "tools" / "transformers_table.py"
    spec = importlib.util.spec_from_file_location("transformers_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "model_type"),
    [("BertForSequenceClassification", "bert"), ("GPT2ForSequenceClassification", "gpt-sw3"),
     ("SwinForImageClassification", "swin"), ("ViTForImageClassification", "vit")],
)  # fmt: skip
def test_models_are_tiny(tool: Any, name: str, model_type: str) -> None:
    assert (name, model_type) in tool.subjects()
    model = tool.build(getattr(transformers, name), model_type)
    assert model.config.num_labels == tool.CLASSES
    assert sum(p.numel() for p in model.parameters()) < 2_000_000


def test_a_class_that_torch_does_not_run_is_no_failure(tool: Any, tmp_path: Path) -> None:
    tool.examine("NoSuchModel", "bert", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["result"] == "not run by torch"


def test_the_table_counts(tool: Any) -> None:
    rows = [
        {"class": "A", "parameters": 7, "exporter": "tracing", "result": "pass", "reason": ""},
        {"class": "B", "result": "fail", "reason": "a | b"},
        {"class": "C", "result": "not run by torch", "reason": ""},
    ]
    text = tool.markdown(rows)
    assert "1 of 2 pass (50 %)." in text
    assert "| B |  |  |  | fail | a / b |" in text
