"""Model directories of Hugging Face as sources: tiny models with random weights, saved and exported again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed here")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")

import onnxft  # noqa: E402
from onnxft.api import plan  # noqa: E402
from onnxft.errors import ConfigError, ModelError  # noqa: E402
from onnxft.exporters.huggingface import FILES, export_directory  # noqa: E402
from onnxft.manifest import Loss  # noqa: E402
from onnxft.manifest_file import read_manifest  # noqa: E402

TEXT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip
BERT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS = partial(Loss, "cross_entropy", "logits", class_axis=2, ignore_index=-100, per_position=True)
NAMES = {0: "noun", 1: "verb", 2: "other"}


def bert(**more: Any) -> Any:
    return transformers.BertConfig(**TEXT, **more)


def llama() -> Any:
    return transformers.LlamaConfig(**TEXT, num_key_value_heads=1)


def vit() -> Any:
    small = {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    return transformers.ViTConfig(**small, image_size=24, patch_size=8, num_channels=1, id2label=NAMES)


MODELS = {
    "sequence": lambda: transformers.BertForSequenceClassification(bert(id2label=NAMES)),
    "regression": lambda: transformers.BertForSequenceClassification(bert(num_labels=1)),
    "tokens": lambda: transformers.BertForTokenClassification(bert(id2label=NAMES)),
    "causal": lambda: transformers.LlamaForCausalLM(llama()),
    "image": lambda: transformers.ViTForImageClassification(vit()),
}


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{task: directory of a tiny model}"""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    for task, make in MODELS.items():
        make().save_pretrained(place / task)
    return {task: place / task for task in MODELS}


@pytest.fixture(scope="session")
def artifacts(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{task: artifact of it, without dropout}"""
    place = tmp_path_factory.mktemp("artifacts")
    return {
        task: onnxft.export(str(source), directory=place / task, batch_size=3, dropout=False)
        for task, source in directories.items()
    }


@pytest.mark.parametrize(
    ("task", "inputs", "loss", "classes", "dimensions"),
    [
        ("sequence", BERT_INPUTS, Loss("cross_entropy", "logits", 3), tuple(NAMES.values()), {"sequence": 18}),
        ("regression", BERT_INPUTS, Loss("mse", "logits"), (), {"sequence": 18}),
        ("tokens", BERT_INPUTS, TOKENS(num_classes=3), tuple(NAMES.values()), {"sequence": 18}),
        ("causal", BERT_INPUTS[:2], TOKENS(num_classes=60, shift=1), (), {"sequence": 18}),
        ("image", ("pixel_values",), Loss("cross_entropy", "logits", 3), tuple(NAMES.values()), {}),
    ],
)  # fmt: skip
def test_the_config_says_what_the_model_is(
    artifacts: dict[str, Path], task: str, inputs: tuple[str, ...], loss: Loss, classes: tuple[str, ...],
    dimensions: dict[str, int],
) -> None:  # fmt: skip
    manifest = read_manifest(artifacts[task])
    assert tuple(p.name for p in manifest.graphs["eval"].named("input")) == inputs
    assert (manifest.loss, manifest.classes, manifest.dimensions) == (loss, classes, dimensions)
    assert [p.name for p in manifest.graphs["eval"].named("output", "outputs")] == ["logits"]
    assert manifest.versions["transformers"] == transformers.__version__


def text_batch(length: int, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    ids, mask = rng.integers(1, 60, (rows, length)), np.ones((rows, length), np.int64)
    mask[0, length - 4 :] = ids[0, length - 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("length", [7, 18])
@pytest.mark.parametrize("task", ["sequence", "regression", "tokens", "causal"])
def test_loss_and_gradients_are_those_of_transformers(
    directories: dict[str, Path], artifacts: dict[str, Path], task: str, length: int
) -> None:
    """The labels go into transformers' own loss, whose mean over what counts it is."""
    batch, rng = text_batch(length), np.random.default_rng(3)
    if task == "causal":
        labels = np.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    elif task == "tokens":
        labels = np.where(batch["attention_mask"] == 1, rng.integers(0, 3, (3, length)), -100)
    else:
        labels = np.array([2, 0, 1]) if task == "sequence" else rng.standard_normal((3, 1)).astype(np.float32)
    fed = batch if task == "causal" else {**batch, "token_type_ids": np.zeros_like(batch["input_ids"])}
    model = type(MODELS[task]()).from_pretrained(directories[task], attn_implementation="eager").eval()
    given = labels[:, 0] if task == "regression" else labels
    expected = model(**{k: torch.tensor(v) for k, v in fed.items()}, labels=torch.tensor(given)).loss
    expected.backward()

    with onnxft.TrainSession(artifacts[task], threads=1, dimensions={"sequence": length}) as session:
        found = session.gradients({**fed, "labels": labels})
        loss = session.evaluate({**fed, "labels": labels}).loss
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    largest = max(float(np.abs(g).max()) for g in found.values())
    for name, p in model.named_parameters():
        if name in found:
            np.testing.assert_allclose(found[name], p.grad, rtol=1e-3, atol=1e-5 * largest, err_msg=name)


def test_rows_and_ignored_tokens_weigh_together(artifacts: dict[str, Path], directories: dict[str, Path]) -> None:
    """Σ row weight × counted tokens: a row of weight 0 and a label of -100 leave loss and accuracy alone."""
    batch = text_batch(9)
    fed = {**batch, "token_type_ids": np.zeros_like(batch["input_ids"])}
    labels = np.random.default_rng(4).integers(0, 3, (3, 9))
    labels[1, 2:] = -100
    weights = np.array([0.5, 2.0, 0.0], np.float32)
    with onnxft.TrainSession(artifacts["tokens"], threads=1, dimensions={"sequence": 9}) as session:
        result = session.evaluate({**fed, "labels": labels, "sample_weights": weights})
    model = transformers.BertForTokenClassification.from_pretrained(directories["tokens"]).eval()
    with torch.no_grad():
        logits = model(**{k: torch.tensor(v) for k, v in fed.items()}).logits
    counted = torch.tensor((labels != -100) * weights[:, None])
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(labels), reduction="none")
    correct = (logits.argmax(2) == torch.tensor(labels)) * counted
    assert result.loss == pytest.approx(float((each * counted).sum() / counted.sum()), rel=1e-5)
    assert result.metrics["accuracy"] == pytest.approx(float(correct.sum() / counted.sum()), rel=1e-5)


def test_dropout_is_kept_for_training_and_gone_for_inference(directories: dict[str, Path]) -> None:
    forward = export_directory(directories["sequence"], name="bert")
    assert sum(node.op_type == "Dropout" for node in forward.train.graph) == 5
    assert "Dropout" not in {node.op_type for node in forward.infer.graph}


def test_what_belongs_to_the_model_goes_along(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["image"], tmp_path / "vit")
    processor = {
        "do_resize": True, "size": {"height": 24, "width": 24}, "do_rescale": True, "rescale_factor": 0.5,
        "do_normalize": True, "image_mean": [0.1], "image_std": [0.2],
    }  # fmt: skip
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    (source / "tokenizer.json").write_text("{}")
    (source / "vocab.txt").symlink_to(source / "config.json")
    (source / "training_args.bin").write_bytes(b"not taken")
    made = plan(str(source), dropout=False)
    assert made.forward.name == "vit"
    assert set(made.forward.files) == {"preprocessor_config.json", "tokenizer.json"} < set(FILES)
    assert made.forward.preprocessing == {
        "size": [24, 24], "resize": "stretch", "scale": 0.5, "mean": [0.1], "std": [0.2],
    }  # fmt: skip
    assert any("'vocab.txt' is a link and does not go along" in note for note in made.notes)


def test_preprocessing_given_goes_over_the_processors(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["image"], tmp_path / "vit")
    processor = {"size": {"height": 30, "width": 24}, "resample": 3, "do_normalize": False}
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    made = plan(str(source), dropout=False, preprocessing={"mean": [0.5]})
    assert made.forward.preprocessing == {"interpolation": "bicubic", "scale": 1 / 255, "mean": [0.5]}
    assert "the processor makes pictures of 30 × 24; they are made in the model's 24 × 24" in made.notes
    with pytest.raises(ConfigError, match="preprocess color RGB has 3 channels, the model's input 1"):
        plan(str(source), dropout=False, preprocessing={"color": "RGB"})


def test_a_new_head_is_noted(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["tokens"], tmp_path / "bert", architectures=["BertForSequenceClassification"])
    notes = export_directory(source, name="bert", dropout=False, dynamic_shapes={}).notes
    assert "no weights for 'bert.pooler.dense.bias', 'bert.pooler.dense.weight': they start from random" in notes[0]


def test_fixed_where_nothing_is_symbolic(directories: dict[str, Path]) -> None:
    assert export_directory(directories["sequence"], name="b", dropout=False, dynamic_shapes={}).dimensions == {}


def copied(source: Path, place: Path, **config: Any) -> Path:
    place.mkdir()
    for file in source.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    values = {**json.loads((place / "config.json").read_text()), **config}
    (place / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return place


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModel": "own.Model"}}, "asks for code of its own (auto_map in config.json)"),
        ({"quantization_config": {"bits": 4}}, "holds quantized weights"),
        ({"architectures": None}, 'names no architecture: add "architectures"'),
        ({"architectures": ["BertForMaskedLM"]}, "the architecture 'BertForMaskedLM'"),
        ({"hidden_size": 24}, "transformers cannot load"),
    ],
)
def test_what_is_not_trusted_or_not_trainable_is_refused(
    directories: dict[str, Path], tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as err:
        plan(str(copied(directories["sequence"], tmp_path / "model", **config)))
    assert words in str(err.value)


def test_several_labels_a_row_take_the_binary_loss(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["sequence"], tmp_path / "model", problem_type="multi_label_classification")
    made = plan(str(source))
    assert made.loss == Loss("bce_with_logits", "logits", made.loss.num_classes)
    assert made.loss.num_classes == plan(str(directories["sequence"])).loss.num_classes


def test_pickled_weights_are_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["sequence"], tmp_path / "model")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, a pickle") as err:
        plan(str(source))
    assert "save_pretrained" in str(err.value)


def test_an_adapter_is_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    source = copied(directories["sequence"], tmp_path / "model")
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')
    with pytest.raises(ModelError, match="holds an adapter"):
        plan(str(source))


@pytest.mark.parametrize("part", ["../sequence/model.safetensors", "weights.bin", None])
def test_weights_elsewhere_are_refused(directories: dict[str, Path], tmp_path: Path, part: str | None) -> None:
    source = copied(directories["sequence"], tmp_path / "model")
    (source / "model.safetensors").unlink()
    listed = {} if part is None else {"weight_map": {"classifier.weight": part}}
    (source / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=r"are not all \.safetensors files in it"):
        plan(str(source))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "it holds no config.json"), (b"{", "is not JSON"), (b"[]", "holds no mapping")],
)
def test_a_directory_without_a_config_is_an_error(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        plan(str(tmp_path))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxft.exporters.huggingface", None)
    with pytest.raises(ModelError, match=r"pip install 'onnxft\[huggingface\]'"):
        plan(str(tmp_path))


def test_the_loss_that_transformers_computes_is_trained(directories: dict[str, Path], tmp_path: Path) -> None:
    module = transformers.AutoModelForTokenClassification.from_pretrained(directories["tokens"]).eval()
    ids, labels = torch.arange(24).reshape(4, 6) % 50, torch.arange(24).reshape(4, 6) % 3
    labels[1, 3:] = -100
    directory = onnxft.export(
        module, {"input_ids": ids, "labels": labels}, tmp_path / "own", loss="model", dropout=False,
        output_names=["loss", "logits"],
    )  # fmt: skip
    batch = {"input_ids": ids.numpy(), "labels_input": labels.numpy()}
    expected = module(ids, labels=labels).loss
    expected.backward()
    with onnxft.TrainSession(directory, threads=1) as session:
        assert session.manifest.loss == Loss("model", "loss", scalar=True, inputs=("labels_input",))
        assert session.evaluate(batch).loss == pytest.approx(float(expected.detach()), rel=1e-6)
        found = session.gradients(batch)
    for name, p in module.named_parameters():
        if name in found:
            np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
