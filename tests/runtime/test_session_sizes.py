"""Several sizes of an open dimension in one session: batches of each train the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onnxft
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import BATCH, GraphFile, Loss, Manifest, Optimizer, Parameter, Port
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sizes import combined, sizes_of

SIZES = (4, 7, 12)
ROWS = 6


class MaskedText(nn.Module):
    """Attention over words that a mask leaves, read in their mean: how far a text is padded changes nothing."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(12, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.dropout, self.head = nn.LayerNorm(8), nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
        scores = scores + (1.0 - mask[:, None, :].to(x.dtype)) * -1e4
        x = self.norm(x + self.dropout(scores.softmax(-1) @ self.value(x)))
        kept = mask[:, :, None].to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1))


@pytest.fixture(scope="module")
def text_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    folder = tmp_path_factory.mktemp("texts")

    def make(dropout: float) -> Path:
        place = folder / f"d{dropout}"
        if not place.exists():
            torch.manual_seed(3)
            ids, mask = torch.ones(2, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.int64)
            onnxft.export(
                MaskedText(dropout), {"ids": ids, "mask": mask}, place, batch_size=ROWS,
                dynamic_shapes={"ids": {1: "sequence"}, "mask": {1: "sequence"}},
            )  # fmt: skip
        return place

    return make


def texts(size: int, seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Rows of which the longest has `size` words."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[size], rng.integers(2, size + 1, rows - 1)])
    mask = (np.arange(size) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, 20, (rows, size)) * mask, "mask": mask, "labels": rng.integers(0, 3, rows)}


def padded(batch: dict[str, np.ndarray], size: int = max(SIZES)) -> dict[str, np.ndarray]:
    return {n: np.pad(a, ((0, 0), (0, size - a.shape[1]))) if a.ndim == 2 else a for n, a in batch.items()}


ORDER = (7, 12, 4, 4, 12, 7)


def run(session: TrainSession, fit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Steps, a short batch, an update from batches of three sizes, averages: all that is kept afterwards."""
    for seed, size in enumerate(ORDER):
        session.step(fit(texts(size, seed)), lr=0.02)
        session.average(0.7)
    session.step(fit(texts(7, 20, rows=4)), lr=0.02)
    for seed, size in enumerate(SIZES):
        session.accumulate(fit(texts(size, 30 + seed, rows=3 + seed)))
    session.update(lr=0.02, max_norm=0.5)
    session.average(0.7)
    gradients = {f"{n}/gradient": v for n, v in session.gradients(fit(texts(4, 40))).items()}
    averages = {f"{n}/average": v for n, v in session.averages.items()}
    losses = {f"loss {n}": np.array(session.evaluate(fit(texts(n, 50, rows=17))).loss) for n in SIZES}
    return {**session.parameters, **session._engine.state(), **averages, **gradients, **losses}


def test_batches_of_several_sizes_train_as_padded_ones(text_artifact: Callable[[float], Path]) -> None:
    artifact = text_artifact(0.0)
    with TrainSession(artifact, threads=1, dimensions={"sequence": SIZES}) as session:
        initial = session.parameters
        assert session.dimensions == {BATCH: ROWS, "sequence": 12}
        assert session.sizes == {BATCH: (ROWS,), "sequence": SIZES}
        assert set(session.placement.nodes) == {"train sequence=12"}
        found = run(session, lambda batch: batch)
        assert set(session.placement.nodes) == {
            *(f"{role} sequence={n}" for role in ("train", "gradients", "eval") for n in SIZES),
            "clip", "update", "average",
        }  # fmt: skip
    with TrainSession(artifact, threads=1, dimensions={"sequence": 12}) as session:
        expected = run(session, padded)
        assert set(session.placement.nodes) == {"train", "gradients", "eval", "clip", "update", "average"}
    assert found.keys() == expected.keys()
    # AdamW makes whole steps of a gradient that is rounding: softmax does not see the bias of the keys.
    noise = [n for n in found if n.startswith("key.bias")]
    for name in found.keys() - set(noise):
        scale = np.abs(expected[name]).max()
        assert np.abs(found[name] - expected[name]).max() <= 1e-6 * max(scale, 1e-3), name
    assert np.abs(found["head.weight"] - initial["head.weight"]).max() > 0.05


def test_a_run_with_sizes_goes_on_from_a_checkpoint_bit_for_bit(
    text_artifact: Callable[[float], Path], tmp_path: Path
) -> None:
    """With Dropout: masks are drawn in the sizes of each batch."""
    artifact, options = text_artifact(0.3), {"threads": 1, "dimensions": {"sequence": SIZES}}

    def train(session: TrainSession, seeds: range) -> list[float]:
        losses = []
        for seed in seeds:
            losses.append(session.step(texts(ORDER[seed % 6], seed), lr=0.02).loss)
            session.average(0.9)
        return losses

    with TrainSession(artifact, seed=5, **options) as session:
        train(session, range(4))
        session.save_checkpoint(tmp_path / "c")
        losses = train(session, range(4, 10))
        expected = [v.tobytes() for v in (*session.parameters.values(), *session.averages.values())]
    with TrainSession(artifact, **options) as session:
        session.load_checkpoint(tmp_path / "c")
        assert train(session, range(4, 10)) == losses
        assert [v.tobytes() for v in (*session.parameters.values(), *session.averages.values())] == expected


def test_other_sizes_change_no_bit(text_artifact: Callable[[float], Path]) -> None:
    """All sessions have their memory from one arena."""

    def train(sizes: int | tuple[int, ...]) -> list[bytes]:
        with TrainSession(text_artifact(0.3), threads=1, dimensions={"sequence": sizes}) as session:
            if isinstance(sizes, tuple):
                for size in sizes:  # leaves what it likes in the arena
                    session.evaluate(texts(size, 60))
            for seed in range(4):
                session.step(texts(12, seed), lr=0.02)
            return [v.tobytes() for v in session.parameters.values()]

    assert train(SIZES) == train(12)


def test_a_batch_says_its_size(text_artifact: Callable[[float], Path]) -> None:
    batch = texts(7, 1)
    with TrainSession(text_artifact(0.0), threads=1, dimensions={"sequence": [12, 4, 7]}) as session:
        assert session.predict({n: batch[n] for n in ("ids", "mask")})["output"].shape == (ROWS, 3)
        for call in (session.evaluate, session.accumulate, lambda b: session.step(b, lr=0.1)):
            with pytest.raises(DataError, match=r"'ids' has the shape \[6, 8\].*'sequence' to 4 or 7 or 12"):
                call(texts(8, 1))
            with pytest.raises(
                DataError, match=r"same sizes of the open dimensions.*'ids': \[6, 7\].*'mask': \[6, 4\]"
            ):
                call({**batch, "mask": batch["mask"][:, :4]})
            with pytest.raises(DataError, match=r"the batch lacks 'mask'"):
                call({n: batch[n] for n in ("ids", "labels")})
            with pytest.raises(DataError, match=r"'ids' has the shape \[6\]"):
                call({**batch, "ids": batch["ids"][:, 0]})


@pytest.mark.parametrize(
    ("dimensions", "words"),
    [
        ({"sequence": ()}, "the dimension 'sequence' has no size"),
        ({"sequence": (4, 0)}, "the dimension 'sequence' is 0; it must be at least 1"),
        ({"length": (4, 8)}, "no symbolic dimension 'length'; it has 'sequence'"),
    ],
)
def test_sizes_that_cannot_be_are_errors(
    dimensions: dict[str, tuple[int, ...]], words: str, text_artifact: Callable[[float], Path]
) -> None:
    with pytest.raises(ConfigError) as err:
        TrainSession(text_artifact(0.0), threads=1, dimensions=dimensions)
    assert words in str(err.value)


def manifest(generator: str = "native") -> Manifest:
    x = Port("x", "input", "float32", (BATCH, "height", "2*width + 1"))
    return Manifest(
        "m", generator, 2, {"eval": GraphFile("eval.onnx", (x,))}, (Parameter("w", (1,), "float32"),),
        Loss("mse", "y"), Optimizer("sgd"), 0, dimensions={"height": 5, "width": 6}, files={"eval.onnx": ""},
    )  # fmt: skip


def test_sizes_of_several_dimensions_and_composed_ones() -> None:
    every = combined(manifest(), 3, {"width": (2, 8), "height": (4, 5, 4)})
    assert every[0] == {BATCH: 3, "height": 5, "width": 8}
    assert len(every) == 4
    ports = manifest().graph("eval").inputs
    assert sizes_of({"x": np.zeros((1, 4, 17))}, ports, every) == {BATCH: 3, "height": 4, "width": 8}
    assert sizes_of({}, ports, every) == every[0]
    with pytest.raises(DataError, match="'2\\*width \\+ 1' to 5 or 17"):
        sizes_of({"x": np.zeros((1, 4, 13))}, ports, every)
