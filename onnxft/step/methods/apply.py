"""A method applied to a model: the model with what is added, and globs of what is trained."""

from __future__ import annotations

import fnmatch
import glob
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnxft.errors import SelectionError, near
from onnxft.graph.forward import Forward
from onnxft.step.methods.blocks import Blocks, find_blocks
from onnxft.step.methods.layers import Layer, find_layers
from onnxft.step.methods.lora import add_lora
from onnxft.step.methods.method import Lora, Method
from onnxft.step.methods.presets import preset_patterns
from onnxft.step.select import Selection


@dataclass(frozen=True)
class Applied:
    """What a method makes of a model."""

    forward: Forward
    trainable: tuple[str, ...]
    """Globs of the parameters to train."""
    blocks: Blocks | None = None
    """What the model consists of; None where no method asks."""
    notes: tuple[str, ...] = ()


def apply_method(
    forward: Forward,
    method: Method | None,
    trainable: Sequence[str] | None,
    frozen: Sequence[str],
    block_patterns: Sequence[str] = (),
) -> Applied:
    """Add to a model what the method adds, and say what is trained.

    Args:
        forward: the model; it is not changed.
        method: None: none.
        trainable: globs of parameters that are trained besides; None: none, or all without a method.
        frozen: globs of parameters that are not trained after all; a weight among them gets no adapter.
        block_patterns: globs of blocks, see `find_blocks`.

    Raises:
        SelectionError: the model has nothing of the kind that is asked for; a pattern of LoRA matches no layer that can
            be adapted, or one that is trained in full; or the rank is above a dimension.
    """
    if method is None:
        return Applied(forward, ("*",) if trainable is None else tuple(trainable))
    blocks = find_blocks(forward, block_patterns)
    patterns = [p for name, count in method.presets for p in preset_patterns(forward, name, count, blocks)]
    patterns += trainable or ()
    if method.lora is None:
        return Applied(forward, tuple(patterns), blocks)
    weights = _targets(forward, method.lora, patterns, frozen, blocks.head)
    made = add_lora(forward, method.lora, weights)
    lora, layers = method.lora, f"{len(weights)} layer{'s' if len(weights) > 1 else ''}"
    notes: tuple[str, ...] = (f"LoRA of rank {lora.rank} at {layers}, alpha {lora.alpha:g}, dropout {lora.dropout:g}",)
    if blocks.head and not any(_matches(name, patterns) or name in weights for name in blocks.head):
        notes += (f"the head ({', '.join(blocks.head)}) stays as it is; --method lora,head trains it too",)
    return Applied(made, (*patterns, *(glob.escape(name) for name in made.added)), blocks, notes)


def require_whole(forward: Forward, selection: Selection) -> None:
    """SelectionError where a pattern freezes a part of what a method added."""
    for name in forward.added:
        if name not in selection.groups:
            raise SelectionError(
                f"'{name}' is a factor of an adapter and is not trained, so that the adapter could not be merged. "
                f"Freeze the weight instead (--freeze '{forward.added[name].target}'), which then gets none."
            )


def _targets(
    forward: Forward, lora: Lora, trained: Sequence[str], frozen: Sequence[str], head: Collection[str]
) -> list[str]:
    """Weights that get an adapter, in the order of the graph."""
    layers, unfit = find_layers(forward)
    names = {t.name: (t.name, *t.tied_to) for t in forward.tensors}
    full = {n for n in names if any(_matches(name, trained) for name in names[n])}
    if lora.targets:
        for pattern in lora.targets:
            _require_match(forward, pattern, layers, unfit, names, full)
        chosen = [n for n in layers if any(_matches(name, lora.targets) for name in names[n])]
    else:
        chosen = [n for n in layers if n not in head and n not in full]
    chosen = [n for n in chosen if not any(_matches(name, frozen) for name in names[n])]
    if not chosen:
        raise SelectionError(
            f"LoRA finds no layer to adapt in '{forward.name}': {len(layers)} linear layers or convolutions, of which "
            f"{sum(n in full for n in layers)} are trained in full and the others are frozen or the head. Name layers "
            "with --lora-target, or leave lora out."
        )
    for name in chosen:
        _require_rank(layers[name][0], lora.rank)
    return chosen


def _require_match(
    forward: Forward,
    pattern: str,
    layers: Collection[str],
    unfit: dict[str, str],
    names: dict[str, tuple[str, ...]],
    full: Collection[str],
) -> None:
    matched = [n for n in layers if any(_matches(name, [pattern]) for name in names[n])]
    if both := [n for n in matched if n in full]:
        raise SelectionError(
            f"'{both[0]}' matches the LoRA target '{pattern}' and is trained in full as well. Leave it out of one of "
            "the two."
        )
    if matched:
        return
    known = [n for n in names if any(_matches(name, [pattern]) for name in names[n])]
    if not known:
        hint = near(pattern.strip("*?."), layers) or " `onnxft export --dry-run` lists the names."
        raise SelectionError(f"the LoRA target '{pattern}' matches no parameter of '{forward.name}'.{hint}")
    reason = next((unfit[n] for n in known if n in unfit), "no linear layer or convolution multiplies by it")
    raise SelectionError(
        f"the LoRA target '{pattern}' matches no linear layer or convolution that can be adapted: '{known[0]}' cannot, "
        f"{reason}. Name weights of linear layers or of convolutions without groups, or train it in full (--train)."
    )


def _require_rank(layer: Layer, rank: int) -> None:
    taken, given = layer.features
    taken *= math.prod(layer.kernel)
    if rank > min(taken, given):
        raise SelectionError(
            f"the LoRA rank {rank} is larger than a dimension of '{layer.weight}', which makes {given} values of "
            f"{taken}. Ask for a rank of at most {min(taken, given)}, or leave the layer out (--freeze "
            f"'{layer.weight}', or --lora-target for others)."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
