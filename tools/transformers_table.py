"""Which classifiers of the installed transformers onnxft exports and differentiates, as a table.

Every `*ForSequenceClassification` and `*ForImageClassification` is built at a tiny size with random weights,
exported, differentiated to all parameters, and its gradients in inference behaviour are compared with torch's.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import multiprocessing
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "artifacts" / "evidence" / "transformers"
CLASSES = 3
SIZE: dict[str, Any] = {"size": 64}

SIZES: tuple[tuple[int, str], ...] = (
    (
        32,
        "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim d_embed",
    ),
    (32, "pooler_hidden_size"),
    (2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers"),
    (1, "num_decoder_layers num_hidden_groups num_blocks num_self_attends_per_block n_group topk_group"),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (48, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff ffn_hidden_size n_inner"),
    (24, "moe_intermediate_size shared_expert_intermediate_size"),
    (8, "head_dim d_kv d_head attention_head_size qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_dt_rank"),
    (8, "linear_key_head_dim linear_value_head_dim mamba_d_state mamba_headdim num_latents"),
    (16, "q_lora_rank kv_lora_rank patch_size"),
    (4, "num_experts num_local_experts n_routed_experts rotary_dim linear_num_value_heads n_mamba_heads"),
    (2, "num_experts_per_tok num_experts_per_token linear_num_key_heads attn_layer_period"),
    (64, "max_position_embeddings n_positions n_ctx max_seq_len image_size input_size"),
)
"""Sizes by the name of the attribute, in configurations and their parts."""
NUMBERS = {name: size for size, names in SIZES for name in names.split()}
VOCABULARY = 120
DERIVED = (
    "transformers_version", "model_type", "architectures", "id2label", "label2id", "stage_names", "out_features",
    "out_indices", "qk_head_dim", "attention_layers", "layers_block_type_",
)  # fmt: skip
"""Attributes that a configuration works out from others."""

HINTS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "donut-swin": {"window_size": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "esm": {"vocab_size": 33},
    "gemma3": {"mm_tokens_per_image": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "mistral4": {"num_key_value_heads": 4},
    "nemotron": {"head_dim": 8},
    "perceiver": {
        "num_self_attention_heads": 1,
        "num_cross_attention_heads": 1,
        "qk_channels": None,
        "v_channels": None,
    },
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"]},
    "swin": {"window_size": 2},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX", "de_DE"]},
}
"""What the names do not tell."""


def tiny(config_class: Any, hints: dict[str, Any]) -> Any:
    """A small configuration: sizes by name, special tokens inside the vocabulary, one layer a stage."""
    return config_class(**_shrunk(config_class().to_dict(), hints))


def _shrunk(values: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    layers = values.get("num_hidden_layers")
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in DERIVED:
            continue
        if key in hints:
            small[key] = hints[key]
        elif key in NUMBERS and isinstance(value, int) and not isinstance(value, bool):
            small[key] = min(NUMBERS[key], value) if value > 0 else value
        elif key.endswith("vocab_size") and isinstance(value, int):
            small[key] = min(value, VOCABULARY)
        elif key in ("depths", "layer_depths") and isinstance(value, list):
            small[key] = [1] * len(value)
        elif key in ("num_heads", "num_attention_heads") and isinstance(value, list):
            small[key] = [2] * len(value)
        elif key.endswith("_token_id") and isinstance(value, int | list):
            small[key] = min(value, 119) if isinstance(value, int) else 119
        elif isinstance(value, list) and len(value) == layers and "num_hidden_layers" not in hints:
            # One layer of each kind, where there are several.
            spelt = list(map(str, value))
            kinds = [spelt.index(v) for v in dict.fromkeys(spelt)]
            small[key] = [value[i] for i in [*kinds, *range(len(value))][: NUMBERS["num_hidden_layers"]]]
        elif isinstance(value, dict):
            small[key] = _shrunk(value, hints)
        elif key == "head_dim" and value is None:
            small[key] = 8
        else:
            small[key] = value
    if values.get("num_key_value_heads") is not None:
        small["num_key_value_heads"] = (
            4
            if "num_key_value_heads" in hints or values["num_key_value_heads"] == values.get("num_attention_heads")
            else 2
        )
    return small


def build(model_class: Any, model_type: str) -> Any:
    """A tiny model with random weights, in inference behaviour."""
    config = tiny(model_class.config_class, HINTS.get(model_type, {}))
    text = config.get_text_config()
    for name in ("decoder_start_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, 0)
    config.num_labels = CLASSES
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = 0
    return model_class._from_config(config, attn_implementation="eager").float().eval()


def subjects() -> list[tuple[str, str]]:
    """(class, model type) of every classifier."""
    from transformers.models.auto import modeling_auto as auto

    found = {}
    for names in (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    ):
        for model_type, classes in names.items():
            for one in (classes,) if isinstance(classes, str) else classes:
                found.setdefault(one, model_type)
    return sorted(found.items())


def examine(class_name: str, model_type: str, path: Path) -> None:
    """Write the result of one class as JSON after each stage, so that a time limit loses nothing."""
    result: dict[str, Any] = {"class": class_name, "result": "", "reason": ""}
    started = time.perf_counter()

    def at(stage: str, **more: Any) -> None:
        result.update(stage=stage, seconds=round(time.perf_counter() - started, 1), **more)
        path.write_text(json.dumps(result))

    try:
        _examine(class_name, model_type, at)
        at("done", result="pass")
    except Exception as err:
        lines = [line.strip() for line in str(err).splitlines() if line.strip()]
        kind = "not run by torch" if result["stage"] == "build" else "fail"
        at(result["stage"], result=kind, reason=f"{type(err).__name__}: {' / '.join(lines[:3])}"[:400])


def _examine(class_name: str, model_type: str, at: Any) -> None:
    import torch
    import transformers

    from onnxft.errors import GradientError
    from onnxft.exporters.huggingface import example_inputs, export_pretrained
    from onnxft.step.build import build_step
    from onnxft.step.loss_options import describe_loss
    from onnxft.step.optimizers import describe_optimizer
    from onnxft.step.select import select

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    at("build")
    model = build(getattr(transformers, class_name), model_type)
    at("build", parameters=sum(p.numel() for p in model.parameters()))
    with torch.no_grad():
        examples = example_inputs(model, SIZE)
        assert model(**examples).logits.shape == (2, CLASSES)
    at("export")
    forward = export_pretrained(model, name=model_type, preprocessing=SIZE)
    traced = any("by tracing" in note for note in forward.notes)
    at(
        "differentiate",
        notes=list(forward.notes),
        exporter="tracing" if traced else "torch.export",
        sequence="" if "pixel_values" in forward.inputs else "symbolic" if forward.dimensions else "fixed",
    )
    loss = describe_loss("cross_entropy", forward.infer.graph.outputs[0])
    selection, sgd = select(forward), describe_optimizer("sgd")
    try:
        build_step(forward, selection, loss, sgd)
    except GradientError:
        if not forward.dimensions:
            raise
        forward = export_pretrained(model, name=model_type, preprocessing=SIZE, dynamic_shapes={})
        at("differentiate", sequence="fixed")
        build_step(forward, selection, loss, sgd)
    at("compare")
    _compare(forward, selection, loss, model, examples)


def _compare(forward: Any, selection: Any, loss: Any, model: Any, examples: Any) -> None:
    """Gradients in inference behaviour equal torch's in one of three draws of the pictures.

    A Relu at its kink, where rounding decides, makes another gradient; it is there in one draw, but not in the next.
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    import numpy as np
    import torch

    from onnxft.exporters.padding import stop_at_padding
    from onnxft.generators import native
    from onnxft.runtime.session import TrainSession
    from onnxft.step.optimizers import describe_optimizer

    labels = np.array([0, CLASSES - 1])
    alike = replace(forward, train=forward.infer.clone())
    stop_at_padding(alike, model)
    with TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        native.generate(alike, selection, loss, describe_optimizer("sgd"), place, batch_size=2)
        with TrainSession(place, threads=1) as session:
            for _ in range(3):
                batch = {own: v.numpy() for own, v in zip(forward.inputs, examples.values(), strict=True)}
                found = session.gradients({**batch, "labels": labels})
                problem = _difference(found, model, examples, labels)
                if not problem:
                    return
                examples = {n: torch.randn_like(v) if v.is_floating_point() else v for n, v in examples.items()}
    raise ArithmeticError(problem)


def _difference(found: dict[str, Any], model: Any, examples: Any, labels: Any) -> str:
    """What differs from torch in float64 by more than 1e-3 and ten times what torch itself loses by rounding."""
    import numpy as np

    expected = _torch_gradients(model, examples, labels)
    try:
        exact = _torch_gradients(copy.deepcopy(model).double(), examples, labels)
    except Exception:  # a model that only runs in float32
        exact = expected
    norm = np.linalg.norm
    largest = max(float(norm(g)) for g in exact.values())
    for name, own in found.items():
        right = exact.get(name, np.zeros(own.shape))
        scale = max(float(norm(right)), 1e-4 * largest)
        rounding = float(norm(expected.get(name, right) - right)) / scale
        error = float(norm(own - right)) / scale
        if not error < 1e-3 + 10 * rounding:
            return f"the gradient of '{name}' differs by {error:.1e} of its norm, torch's own by {rounding:.1e}"
    return ""


def _torch_gradients(model: Any, examples: Any, labels: Any) -> dict[str, Any]:
    import torch

    model.zero_grad()
    cast = {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in examples.items()}
    torch.nn.functional.cross_entropy(model.train().eval()(**cast).logits, torch.tensor(labels)).backward()
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


def run_all(wanted: list[tuple[str, str]], folder: Path, workers: int, limit: float) -> list[dict[str, Any]]:
    """The results of the classes, each from a process of its own."""
    context = multiprocessing.get_context("fork")
    waiting, results = list(wanted), []
    running: dict[str, tuple[Any, float, Path]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            class_name, model_type = waiting.pop(0)
            path = folder / f"{class_name}.json"
            path.unlink(missing_ok=True)
            process = context.Process(target=examine, args=(class_name, model_type, path))
            process.start()
            running[class_name] = (process, time.monotonic(), path)
        time.sleep(0.1)
        for class_name, (process, started, path) in list(running.items()):
            if process.is_alive() and time.monotonic() - started < limit:
                continue
            late = process.is_alive()
            process.kill()
            process.join()
            del running[class_name]
            results.append(_ended(path, class_name, f"took more than {limit:.0f} s" if late else "the process died"))
            print(
                len(results),
                *(results[-1].get(k) for k in ("class", "result", "stage", "seconds", "reason")),
                flush=True,
            )
    return results


def _ended(path: Path, class_name: str, how: str) -> dict[str, Any]:
    """What a process wrote; it failed where it did not end by itself."""
    result: dict[str, Any] = {"class": class_name, "stage": "build", "result": "", "reason": ""}
    if path.is_file():
        result = json.loads(path.read_text())
    if not result["result"]:
        result.update(result="fail", reason=how)
        path.write_text(json.dumps(result))
    return result


def markdown(results: list[dict[str, Any]]) -> str:
    """The table, and the counts above it."""
    import onnxruntime
    import torch
    import transformers

    counts = Counter(r["result"] for r in results)
    tried = counts["pass"] + counts["fail"]
    keys = ("class", "parameters", "exporter", "sequence", "result", "reason")
    rows = [f"| {' | '.join(str(r.get(k, '')).replace('|', '/') for k in keys)} |" for r in results]
    return "\n".join(
        [
            "# Classifiers of transformers",
            "",
            f"{counts['pass']} of {tried} pass ({100 * counts['pass'] / max(tried, 1):.0f} %).",
            f"{counts['not run by torch']} more are not run by torch at this size, or need a package that is not here.",
            f"transformers {transformers.__version__}, torch {torch.__version__}, "
            f"onnxruntime {onnxruntime.__version__}.",
            "",
            "Pass: exported, differentiated to all parameters, every gradient within 1e-3 of the norm of torch's.",
            "",
            "| Class | Parameters | Exporter | Sequence | Result | Reason |",
            "|---|---:|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Examine the classes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of class names [default: all]")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds for one class")
    parser.add_argument("--keep", action="store_true", help="keep what passed in an earlier run")
    parser.add_argument("--out", type=Path, default=OUT, help="place of the table, without suffix")
    options = parser.parse_args()
    # Loaded once, before the processes split off.
    for name in ("exporters.huggingface", "step.build", "runtime.session", "generators.native"):
        importlib.import_module(f"onnxft.{name}")

    folder = options.out.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    if options.keep:
        found = (json.loads(p.read_text()) for p in folder.glob("*.json"))
        kept = {r["class"]: r for r in found if r["result"] == "pass"}
    wanted = [(c, m) for c, m in subjects() if not options.names or any(n in c for n in options.names)]
    results = run_all([w for w in wanted if w[0] not in kept], folder, options.workers, options.limit)
    results = sorted([*results, *(kept[c] for c, _ in wanted if c in kept)], key=lambda r: r["class"])
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(Counter(r["result"] for r in results))


if __name__ == "__main__":
    main()
