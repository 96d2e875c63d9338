"""A checkpoint of one generator, taken up by an artifact of the other: the same model, optimizer and state.

Parameters and AdamW's averages (`exp_avg`, `exp_avg_sq`) have the same names and values in both; onnxruntime-training
keeps the number of updates in its state too, where the native update takes it as an input. What one of the two has no
counterpart for is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxft.arrays import Array
from onnxft.errors import ArtifactError
from onnxft.files import weights_beside
from onnxft.manifest import PARAMETERS_FILE, Distribution, Loss, Manifest, Optimizer, ParameterGroup
from onnxft.runtime.loss_scale import LossScale
from onnxft.runtime.rates import by_group
from onnxft.runtime.snapshot import Snapshot

_PIECE = 2**20
_WEIGHTS_SUFFIX = Path(PARAMETERS_FILE).suffix
STEP = "step"
"""Number of updates in the state of onnxruntime-training's optimizer."""


@dataclass(frozen=True)
class Trained:
    """What is trained and how, whichever generator made the graphs; kept with every checkpoint."""

    generator: str
    optimizer: Optimizer
    decays: dict[str, float]
    """{parameter group: weight decay of the last update, before the first the artifact's}"""
    loss: Loss
    groups: tuple[ParameterGroup, ...]
    random: tuple[tuple[str, Distribution], ...]
    """Each random input (Dropout and the like) and how it is drawn, in the order of the draws."""
    runtime_random: tuple[str, ...]
    """Operators whose numbers the runtime draws."""
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    files: dict[str, str]
    """{file that came along with the model, such as its tokenizer: SHA-256}"""
    frozen: str
    """SHA-256 of the inference model without what is trained."""

    @classmethod
    def of(cls, directory: Path, manifest: Manifest) -> Trained:
        """That of an artifact."""
        graph = manifest.graph("ort_training" if manifest.generator == "ort-training" else "train")
        infer = directory / manifest.graph("infer").file
        own = {g.file for _, g in manifest.every_graph} | {weights_beside(infer).name}
        return cls(
            manifest.generator,
            manifest.optimizer,
            by_group(manifest, 0.0, None)[1],
            manifest.loss,
            manifest.parameter_groups,
            tuple((p.name, p.distribution) for p in graph.named("random") if p.distribution is not None),
            manifest.runtime_random,
            manifest.classes,
            manifest.preprocessing,
            {n: digest for n, digest in manifest.files.items() if n not in own and not n.endswith(_WEIGHTS_SUFFIX)},
            _frozen_digest(infer, manifest),
        )


def taken_up(
    path: Path, before: Trained, now: Trained, own: Snapshot, found: Snapshot, manifest: Manifest
) -> dict[str, Array]:
    """The optimizer state of a checkpoint as the other generator has it.

    Args:
        path: of the checkpoint, for messages.
        before: what the checkpoint was written for.
        now: what the artifact trains that goes on.
        own: how its session stands.
        found: what the checkpoint holds.
        manifest: of the artifact that goes on.

    Raises:
        ArtifactError: model, loss, optimizer or decays are not the same, or the checkpoint holds something that the
            other generator has not.
    """
    for reason in (
        *_without_counterpart(now, found),
        *_differences(before, now),
        *_other_values(found, manifest),
        *_other_model(before, now),
    ):
        raise ArtifactError(
            f"checkpoint '{path}' of the generator '{before.generator}' cannot go on with '{now.generator}': {reason}. "
            "Export the same model with the same options for both, or begin a new run with the weights alone "
            "(--weights)."
        )
    moments = {name: value for name, value in found.state.items() if name != STEP}
    plain = now.optimizer.kind == "sgd"  # onnxruntime-training's holds zeros that nothing reads
    if now.generator != "ort-training":
        return {} if plain else moments
    unread = {name: np.zeros_like(value) for name, value in own.state.items()} if plain else {}
    return {**unread, **moments, STEP: np.array(found.step_count, np.int64)}


def _without_counterpart(now: Trained, found: Snapshot) -> Iterator[str]:
    if found.averages and now.generator == "ort-training":
        yield "it holds averages of the parameters (ema), which 'ort-training' does not keep"
    if found.loss_scale != LossScale():
        yield f"it holds the loss scale {found.loss_scale.scale:g} of a float16 run, which 'ort-training' has not"
    counted = int(found.state.get(STEP, found.step_count))
    if counted != found.step_count:
        yield f"its optimizer has counted {counted} updates, and {found.step_count} were made"


def _other_values(found: Snapshot, manifest: Manifest) -> Iterator[str]:
    own = {w.name for w in manifest.weights}
    for name in sorted(set(found.values) - own):
        yield f"it holds '{name}', a parameter or running statistic that the artifact does not train"
    for name in sorted(own - set(found.values)):
        yield f"it lacks '{name}', which the artifact trains"


def _other_model(before: Trained, now: Trained) -> Iterator[str]:
    if before.frozen != now.frozen:
        yield "the model around what is trained is another: its graph, or the values of what is frozen"


def _differences(before: Trained, now: Trained) -> Iterator[str]:
    """What would train otherwise, each as the reason of a refusal."""
    yield from _changed("optimizer", before.optimizer.kind, now.optimizer.kind)
    for name in sorted({*before.optimizer.options, *now.optimizer.options}):
        options = (o.options.get(name, "none") for o in (before.optimizer, now.optimizer))
        yield from _changed(f"optimizer option {name}", *options)
    yield from _changed("weight decays", before.decays, now.decays)
    for field in fields(Loss):
        yield from _changed(f"loss {field.name}", *(getattr(t.loss, field.name) for t in (before, now)))
    yield from _changed("parameter groups", [asdict(g) for g in before.groups], [asdict(g) for g in now.groups])
    draws = [(t.random, len(t.runtime_random)) for t in (before, now)]
    if draws[0] != draws[1]:
        told = [f"{len(inputs)} drawn by onnxft and {own} by the runtime" for inputs, own in draws]
        yield f"random masks (Dropout and the like) would be others: before {told[0]}, now {told[1]}, or in another way"
    for name in ("classes", "preprocessing", "files"):
        yield from _changed(name, getattr(before, name), getattr(now, name))


def _changed(name: str, before: object, now: object) -> Iterator[str]:
    if before != now:
        yield f"it was trained with {name} {before}, the artifact has {now}"


def _frozen_digest(infer: Path, manifest: Manifest) -> str:
    """SHA-256 of the inference model but for the bytes of trained parameters and running statistics.

    Both generators write the same inference model for the same export, so that equal digests are equal models.
    """
    digest = hashlib.sha256()
    for file in (infer, weights_beside(infer)):
        if not file.exists():
            continue
        added = {p.name for p in manifest.parameters if p.merge is not None}  # their places are those of frozen weights
        trained = [t.inference for t in manifest.weights if t.inference is not None and t.name not in added]
        places = [place for place in trained if place.file == file.name]
        with file.open("rb") as opened:
            for place in sorted(places, key=lambda p: p.offset):
                for piece in _pieces(opened, place.offset):
                    digest.update(piece)
                opened.seek(max(opened.tell(), place.offset + place.length))
            for piece in _pieces(opened, file.stat().st_size):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(file: BinaryIO, end: int) -> Iterator[bytes]:
    """What lies before `end`, a little at a time: a mapped file would count as memory of this process."""
    while (wanted := min(end - file.tell(), _PIECE)) > 0 and (piece := file.read(wanted)):
        yield piece
