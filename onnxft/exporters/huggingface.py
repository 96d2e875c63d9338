"""A Hugging Face model directory as a source: nothing is downloaded, unpickled or run from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from onnxft.errors import ModelError
from onnxft.exporters.check import tensors_of
from onnxft.exporters.dimensions import DynamicShapes
from onnxft.exporters.huggingface_inputs import TEXT, example_inputs
from onnxft.exporters.huggingface_pictures import picture_keys
from onnxft.exporters.pytorch import export_module
from onnxft.graph.forward import Forward
from onnxft.manifest import Loss
from onnxft.runtime.providers import first_line

SEQUENCE = "sequence"
"""Name of the symbolic dimension that runs over the tokens of a text."""
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "preprocessor_config.json")
"""What goes along with the model."""
_LARGEST_FILE = 64 << 20
_LARGEST_CONFIG = 4 << 20
_SUFFIX = ".safetensors"
IGNORED = -100
"""The label of a token that does not count, as transformers has it."""

_TASKS: dict[str, Mapping[str, Any]] = {
    "sequence classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "token classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "causal language modelling": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


def export_directory(
    directory: Path,
    example_inputs: Any = None,
    *,
    name: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
) -> Forward:
    """Export the model of a directory that `save_pretrained` wrote.

    Args:
        directory: holds `config.json` and safetensors weights.
        example_inputs: as in `export_module`; None makes them from the config.
        name: of the model.
        input_names: names of the inputs in the graphs.
        output_names: names of the outputs; None takes those of transformers, `logits` first.
        dropout: whether the training graph keeps Dropout and other random operators.
        dynamic_shapes: as in `export_module`; None makes the tokens of a text symbolic, if the model allows it.

    Raises:
        ModelError: the directory asks for code or unpickling, its architecture is none that can be trained, or
            the export fails.
    """
    config = _read_json(directory / "config.json")
    task, architecture = _task(config, directory)
    model, notes = _load(directory, architecture)
    made, unknown = _preprocessing(directory)
    forward = export_pretrained(
        model, example_inputs, name=name, input_names=input_names, output_names=output_names, dropout=dropout,
        dynamic_shapes=dynamic_shapes, preprocessing=made,
    )  # fmt: skip
    made, unfit = _fitting(made, forward)
    loss = _loss(task, model.config, forward)
    files, left_out = _files(directory)
    return replace(
        forward,
        loss=loss,
        classes=_classes(model.config) if loss.kind in ("cross_entropy", "bce_with_logits") and not loss.shift else (),
        preprocessing=made,
        files=files,
        versions={**forward.versions, "transformers": transformers.__version__},
        notes=(*notes, *unknown, *unfit, *left_out, *forward.notes),
    )


def export_pretrained(
    model: transformers.PreTrainedModel,
    examples: Any = None,
    *,
    name: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Forward:
    """Export a loaded model, without its cache and intermediate results; arguments as in `export_directory`."""
    # Parts may have configurations of their own, as encoders and decoders do.
    for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
        for option in ("use_cache", "output_hidden_states", "output_attentions"):
            setattr(config, option, False)
        config.return_dict = True
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the only one that is made of ordinary operators
    made = examples is None
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    examples = example_inputs(model, preprocessing) if made else examples
    shapes: DynamicShapes = dynamic_shapes or {}
    if made and dynamic_shapes is None:
        shapes = {n: {1: SEQUENCE} for n, v in examples.items() if n in TEXT and v.shape[1] > 2}
    return export_module(
        model, examples, name=name, input_names=input_names,
        output_names=output_names or _output_names(model, examples), dropout=dropout, dynamic_shapes=shapes,
        largest={SEQUENCE: limit} if isinstance(limit, int) and limit > 3 else {},  # torch proves less without it
        give_way=dynamic_shapes is None,
    )  # fmt: skip


def _task(config: Mapping[str, Any], directory: Path) -> tuple[str, str]:
    """The task and the class that the config names; ModelError if it is not to be trusted or not trainable."""
    if "auto_map" in config:
        raise ModelError(
            f"'{directory}' asks for code of its own (auto_map in config.json), which is not run. Load the model "
            "yourself in a factory, if you trust it: `onnxft export file.py:factory`."
        )
    if "quantization_config" in config:
        raise ModelError(f"'{directory}' holds quantized weights; train the model they were made from.")
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"'{directory / 'config.json'}' names no architecture: add \"architectures\".")
    task = next((t for t, mapping in _TASKS.items() if names[0] in _class_names(mapping)), None)
    if task is None:
        raise ModelError(
            f"the architecture '{names[0]}' of '{directory}' is none for {', '.join(_TASKS)}. To give the model a new "
            'head, name its class in config.json, such as "architectures": ["BertForSequenceClassification"], and the '
            'classes in "id2label".'
        )
    return task, names[0]


def _class_names(mapping: Mapping[str, Any]) -> set[str]:
    return {c for classes in mapping.values() for c in ((classes,) if isinstance(classes, str) else classes)}


def _load(directory: Path, architecture: str) -> tuple[transformers.PreTrainedModel, tuple[str, ...]]:
    """The model in float32, and what to know about its weights."""
    if not any((directory / n).is_file() for n in ("model.safetensors", "model.safetensors.index.json")):
        pickled = sorted(p.name for p in directory.glob("*.bin"))
        reason = (
            f"only {', '.join(pickled)}, a pickle, which can run any code when it is read. If you trust it, convert "
            f"it: transformers.{architecture}.from_pretrained(..., use_safetensors=False).save_pretrained(...)"
            if pickled
            else "no model.safetensors"
        )
        raise ModelError(f"'{directory}' has {reason}.")
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"'{directory}' holds an adapter (adapter_config.json): merge it into its model and save that."
        )
    if not (directory / "model.safetensors").is_file():
        parts = _read_json(directory / "model.safetensors.index.json").get("weight_map")
        if not isinstance(parts, dict) or any(
            Path(str(p)).name != p or Path(p).suffix != _SUFFIX for p in parts.values()
        ):
            raise ModelError(f"the weights that '{directory}' lists are not all {_SUFFIX} files in it.")
    try:
        with _quiet():
            model, info = getattr(transformers, architecture).from_pretrained(
                str(directory.resolve()), local_files_only=True, trust_remote_code=False, use_safetensors=True,
                attn_implementation="eager", dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as err:
        raise ModelError(f"transformers cannot load '{directory}': {first_line(err)}") from err
    notes = []
    if missing := sorted(info["missing_keys"]):
        notes.append(
            f"the directory has no weights for {_listed(missing)}: they start from random values, as a new head does"
        )
    if unread := sorted(info["unexpected_keys"]):
        notes.append(f"{architecture} has no place for the weights {_listed(unread)}")
    stored = getattr(model.config, "dtype", None)
    if stored not in (None, torch.float32, "float32"):
        notes.append(f"the weights were converted from {str(stored).removeprefix('torch.')} to float32")
    return model, tuple(notes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings: what they say of the weights is in the notes."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(50)  # critical
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _loss(task: str, config: Any, forward: Forward) -> Loss:
    """The loss that transformers itself takes for the task."""
    output = forward.outputs[0]
    match task:
        case "token classification":
            return Loss("cross_entropy", output, class_axis=2, ignore_index=IGNORED)
        case "causal language modelling":
            return Loss("cross_entropy", output, class_axis=2, ignore_index=IGNORED, shift=1)
    if config.problem_type == "multi_label_classification":
        return Loss("bce_with_logits", output)
    regression = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
    return Loss("mse" if regression else "cross_entropy", output)


def _classes(config: Any) -> tuple[str, ...]:
    """Names of the classes; none where they are only numbered (LABEL_0, ...)."""
    names = tuple(str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _preprocessing(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How pictures are made, and notes on what is not known of it."""
    path = directory / "preprocessor_config.json"
    return picture_keys(_read_json(path)) if path.is_file() else ({}, ())


def _fitting(found: dict[str, Any], forward: Forward) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Without a size that is not that of the model's input."""
    shapes = [v.shape for v in forward.infer.graph.inputs if v.name == "pixel_values" and v.shape is not None]
    sides = [d for d in shapes[0][2:] if isinstance(d, int)] if shapes else []
    if "size" not in found or len(sides) != 2 or list(found["size"]) == sides:
        return found, ()
    size = found["size"]
    note = (
        f"the processor makes pictures of {size[0]} × {size[1]}; they are made in the model's {sides[0]} × {sides[1]}"
    )
    return {key: value for key, value in found.items() if key not in ("size", "resize")}, (note,)


def _files(directory: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """{name: content} of what goes along, and notes on what does not."""
    found, notes = {}, []
    for name in FILES:
        path = directory / name
        if not path.is_file():
            continue
        if path.is_symlink():
            notes.append(f"'{name}' is a link and does not go along")
        elif path.stat().st_size > _LARGEST_FILE:
            notes.append(f"'{name}' has {path.stat().st_size:,} bytes and does not go along")
        else:
            found[name] = path.read_bytes()
    return found, tuple(notes)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"'{path.parent}' is no model directory: it holds no {path.name}.")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ModelError(f"'{path}' has {path.stat().st_size:,} bytes, which is no configuration.")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as err:
        raise ModelError(f"'{path}' is not JSON: {err}.") from err
    if not isinstance(values, dict):
        raise ModelError(f"'{path}' holds no mapping.")
    return values


def _output_names(model: transformers.PreTrainedModel, examples: Mapping[str, torch.Tensor]) -> list[str]:
    """The names that transformers gives to the outputs; several tensors under one are numbered."""
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            found = model(**examples)
    except Exception as err:
        raise ModelError(f"{type(model).__name__} does not run on its example inputs: {first_line(err)}") from err
    finally:
        model.train(training)
    names = []
    for key, value in found.items():
        count = len(tensors_of(value))
        names += [key] if count == 1 else [f"{key}.{i}" for i in range(count)]
    return names


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(f"'{n}'" for n in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
