"""Adapters as the package peft writes and reads them: a folder with a configuration and a safetensors file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError
from onnxft.files import write_atomically
from onnxft.manifest import Manifest
from onnxft.merge import LORA_A, LORA_B

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WEIGHT = ".weight"
_IDENTITY = "onnxft.identity"
"""Key in the metadata of the weights: what they belong to, see `identity`."""
_FACTOR = re.compile(rf"(.+)\.({LORA_A}|{LORA_B})(\.default)?\.weight")
_OTHERWISE = (
    "use_dora", "use_rslora", "use_qalora", "alpha_pattern", "rank_pattern", "lora_bias", "layer_replication",
    "alora_invocation_tokens", "trainable_token_indices",
)  # fmt: skip
"""Keys of a configuration under which an adapter computes something else than W + alpha / rank B A, one for all."""


def why_not_peft(manifest: Manifest) -> str:
    """Why peft could not read an adapter of this artifact; "" where it can."""
    for target in manifest.adapters:
        if not target.endswith(_WEIGHT):
            return f"'{target}' is not the weight of a torch module"
    return ""


def write_peft(folder: Path, manifest: Manifest, values: Arrays, frozen: set[str], identity: str) -> None:
    """Write an adapter and all else that was trained.

    Args:
        folder: to write to.
        manifest: of the artifact.
        values: {parameter or running statistic: value}.
        frozen: names of the frozen tensors.
        identity: of the model.
    """
    added = {p.name for p in manifest.parameters if p.merge is not None}
    full = [name for name in values if name not in added]
    adapted = {target.rpartition(".")[0] for target in manifest.adapters}
    tensors = {_factor_key(name): values[name] for name in added} | {_key(name, adapted): values[name] for name in full}
    pairs = list(manifest.adapters.items())
    (_, (first, _)) = pairs[0]
    assert first.merge is not None
    alpha = first.merge.alpha
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": first.shape[0],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": first.merge.dropout,
        "bias": "none",
        # A pattern that matches whole names: peft takes a list as endings of names, which others may have too.
        "target_modules": "|".join(re.escape(target.removesuffix(_WEIGHT)) for target, _ in pairs),
        "fan_in_fan_out": all(a.merge is not None and a.merge.transposed for _, (a, _) in pairs),
        "modules_to_save": _whole_modules(full, frozen | set(manifest.adapters)) or None,
    }
    write_atomically(folder / WEIGHTS_FILE, save(tensors, {"format": "pt", _IDENTITY: identity}))
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2).encode())


def read_peft(folder: Path, manifest: Manifest, identity: str) -> dict[str, Array]:
    """{parameter: value} of an adapter.

    Raises:
        ArtifactError: a file is missing or damaged, or the adapter computes otherwise or is of another model.
    """
    config, tensors, metadata = _read(folder)
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"the adapter '{folder}' is of the kind {config.get('peft_type')!r}; LORA alone is read.")
    for key in _OTHERWISE:
        if config.get(key):
            raise ArtifactError(
                f"the adapter '{folder}' has {key} {config[key]!r}, with which it computes otherwise than that of the "
                "artifact. Train it without, or merge it with peft and export the merged model."
            )
    a = next(a for a, _ in manifest.adapters.values())
    assert a.merge is not None
    own = {"r": a.shape[0], "lora_alpha": a.merge.alpha}
    for key, value in own.items():
        if config.get(key) != value:
            option = "--method lora:" if key == "r" else "--lora-alpha "
            raise ArtifactError(
                f"the adapter '{folder}' has {key} {config.get(key)!r}, and '{manifest.name}' was exported with "
                f"{value:g}. Export with {option}{config.get(key)}."
            )
    if metadata.get(_IDENTITY, identity) != identity:
        raise ArtifactError(
            f"the adapter '{folder}' belongs to another model than '{manifest.name}': its frozen weights, layers or "
            "scale were others. Export the model that it was trained for."
        )
    return {_name(key): value for key, value in tensors.items()}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Array], Mapping[str, str]]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        content = (folder / WEIGHTS_FILE).read_bytes()
        tensors: dict[str, Array] = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except FileNotFoundError as err:
        raise ArtifactError(
            f"'{folder}' is not an adapter of peft: there is no '{err.filename}'. Save it with safetensors "
            "(save_pretrained does)."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as err:
        raise ArtifactError(f"the adapter '{folder}' is damaged, or of a type that numpy has not: {err}.") from err
    if not isinstance(config, dict):
        raise ArtifactError(f"'{folder / CONFIG_FILE}' is damaged: it holds no mapping.")
    return config, tensors, header.get("__metadata__", {})


def _factor_key(name: str) -> str:
    """`layer.weight.lora_A` as peft calls it: `base_model.model.layer.lora_A.weight`."""
    target, _, factor = name.rpartition(".")
    return f"{_PREFIX}{target.removesuffix(_WEIGHT)}.{factor}{_WEIGHT}"


def _key(name: str, adapted: Collection[str]) -> str:
    """What peft calls a tensor of the model; a module that it adapts becomes a part of another."""
    module, _, own = name.rpartition(".")
    return f"{_PREFIX}{module}.base_layer.{own}" if module in adapted else _PREFIX + name


def _name(key: str) -> str:
    own = key.removeprefix(_PREFIX)
    if factor := _FACTOR.fullmatch(own):
        return f"{factor[1]}{_WEIGHT}.{factor[2]}"
    for part in (".modules_to_save.default", ".modules_to_save", ".base_layer"):
        own = own.replace(part, "")
    return own


def _whole_modules(full: list[str], others: set[str]) -> list[str]:
    """Modules of which every tensor is trained, and whose name no other module's name ends with.

    peft replaces such modules as a whole; the tensors of others it puts into the model, by their names.
    """
    modules = {name.rpartition(".")[0] for name in (*full, *others)}
    found = []
    for module in dict.fromkeys(name.rpartition(".")[0] for name in full):
        partly = any(name.startswith(f"{module}.") for name in others)
        statistics = any(name.startswith(f"{module}.running_") for name in full)  # num_batches_tracked is not kept
        alike = any(other != module and other.endswith(module) for other in modules)
        if module and not (partly or statistics or alike):
            found.append(module)
    return found
