"""The padding row of an embedding is trained as torch trains it: not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onnxft
from onnxft.errors import ProviderError
from onnxft.ort_training_environment import find_python


class Padded(nn.Module):
    """Reads padding tokens too; with `tied`, the table is the last layer as well, which torch trains at every row."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=2)
        self.plain = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        nn.init.normal_(self.table.weight)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head((self.table(ids) * self.plain(ids)).sum(1))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("generator", ["native", "ort-training"])
def test_gradients_equal_torch(tied: bool, dropout: bool, generator: str, tmp_path: Path) -> None:
    if generator == "ort-training":
        try:
            find_python()
        except ProviderError as err:
            pytest.skip(str(err))
    torch.manual_seed(1)
    module, ids, labels = Padded(tied), torch.tensor([[2, 2, 5], [0, 2, 6]]), torch.tensor([3, 2])
    artifact = onnxft.export(module, ids, tmp_path / "a", dropout=dropout, generator=generator)
    with onnxft.TrainSession(artifact, threads=1) as session:
        found = session.gradients({"ids": ids.numpy(), "labels": labels.numpy()})
    torch.nn.functional.cross_entropy(module(ids), labels).backward()
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found[name], p.grad.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    assert tied or not found["table.weight"][2].any()
