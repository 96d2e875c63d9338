"""Example inputs of a Hugging Face model, made from its config."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from onnxft.errors import ModelError

TEXT = ("input_ids", "attention_mask", "token_type_ids", "bbox")
"""Inputs whose axis 1 runs over the tokens."""
_LENGTH = 64
"""Tokens of an example text, where the model takes as many."""
_ROWS = 2


def example_inputs(model: Any, preprocessing: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """{argument name: tensor} of two rows: texts, one of which is padded, or pictures.

    Args:
        model: a transformers model.
        preprocessing: its `size` (height, width), where the processor says it.

    Raises:
        ModelError: the model reads neither texts nor pictures, or its config does not say their size.
    """
    takes = inspect.signature(model.forward).parameters
    found: dict[str, torch.Tensor] = {}
    if "input_ids" in takes and model.main_input_name != "pixel_values":
        found = _text(model.config, set(takes))
    elif "pixel_values" in takes:
        found["pixel_values"] = _pictures(model.config, preprocessing or {})
    if not found:
        raise ModelError(
            f"{type(model).__name__} reads '{model.main_input_name}': example inputs are made for texts (input_ids) "
            "and pictures (pixel_values) only. Write a factory that returns the model and its example inputs."
        )
    return found


def _text(config: Any, takes: set[str]) -> dict[str, torch.Tensor]:
    """Random tokens; the second row ends half-way, so that a mask frozen into the graph is found out."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from pad_token_id + 1 on.
    spare = 2 if isinstance(limit, int) and limit % 2 == 0 and limit - 2 < _LENGTH else 0
    length = min(_LENGTH, limit - spare) if isinstance(limit, int) and limit > 3 else _LENGTH
    special = [i for i in (_id(text, "pad"), _id(text, "eos")) if i is not None]
    vocabulary = getattr(text, "vocab_size", None) or 256  # without one, tokens are characters
    ids = torch.randint(0, vocabulary, (_ROWS, length), generator=torch.Generator().manual_seed(0))
    plain = next(i for i in range(vocabulary) if i not in special)
    ids[torch.isin(ids, torch.tensor(special, dtype=ids.dtype))] = plain
    mask = torch.ones_like(ids)
    if (padding := _id(text, "pad")) is not None:
        mask[1, length // 2 :] = 0
        ids[mask == 0] = padding
    if (eos := _id(text, "eos")) is not None:  # some read the state of the token that closes the text
        ids[torch.arange(_ROWS), mask.sum(1) - 1] = eos
    found = {"input_ids": ids}
    if "attention_mask" in takes:
        found["attention_mask"] = mask
    if "token_type_ids" in takes and getattr(text, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = (torch.arange(length) >= length // 3).long().repeat(_ROWS, 1)
    if "bbox" in takes:
        found["bbox"] = torch.tensor([1, 2, 5, 7]).repeat(_ROWS, length, 1)
    return found


def _id(config: Any, what: str) -> int | None:
    """A special token, the last of several."""
    token = getattr(config, f"{what}_token_id", None)
    return token[-1] if isinstance(token, list) else token


def _pictures(config: Any, preprocessing: dict[str, Any]) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or config
    own = next((v for n in ("image_size", "input_size") if (v := getattr(vision, n, None)) is not None), None)
    size = own if own is not None else preprocessing.get("size")
    if size is None:
        raise ModelError(
            f"neither the config ({type(config).__name__}) nor preprocessor_config.json says the size of the pictures: "
            'add "image_size" to config.json.'
        )
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", None) or 3
    return torch.randn(_ROWS, channels, height, width, generator=torch.Generator().manual_seed(0))
