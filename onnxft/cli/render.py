"""What the commands print: tables and sentences on stdout, progress and errors on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxft.frozen_weights import FrozenWeights, RelativeError
from onnxft.manifest import DEFAULT_GROUP, Loss, Manifest, ParameterGroup
from onnxft.memory import size_text
from onnxft.merge import LORA_A

if TYPE_CHECKING:
    from onnxft.plan import Plan

_MAX_ROWS = 40


def console() -> Console:
    """Standard output; plain text when it is not a terminal."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of plain text."""
    console().print(escape(text))


def loss_text(loss: Loss) -> str:
    """A loss with its output, classes and what differs from the defaults."""
    text = f"{loss.kind} of '{loss.output}'"
    if loss.num_classes is not None:
        binary = loss.kind == "bce_with_logits" and loss.num_classes == 1
        text += ", binary" if binary else f", {loss.num_classes} classes"
    plain = Loss(loss.kind, loss.output)
    for name in ("class_weights", "label_smoothing", "ignore_index", "shift", "pos_weight", "delta", "inputs"):
        value = getattr(loss, name)
        if value != getattr(plain, name):
            text += f", {name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
    return f"{text}, one number for the batch" if loss.scalar else text


def group_text(group: ParameterGroup) -> str:
    """A parameter group with what it has of its own."""
    factor = f"lr × {group.lr_factor:g}" if group.lr_factor != 1 else "lr as given"
    decay = "weight decay as given" if group.weight_decay is None else f"weight decay {group.weight_decay:g}"
    return f"{group.name}: {factor}, {decay}"


def table(*columns: str) -> Table:
    """An empty table without borders; a column whose name begins with `>` holds numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # The end of a parameter's name is what tells it from others: it is never cut.
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


def parameter_table(plan: Plan) -> None:
    """Every parameter with its shape and whether it is trained, and the totals."""
    chosen, total, count = plan.selection.groups, 0, 0
    ranks = {
        m.target: t.shape[0] for t in plan.forward.tensors if (m := plan.forward.added.get(t.name)) and m.rule == LORA_A
    }
    rows = []
    for tensor in plan.forward.tensors:
        if tensor.kind != "parameter":
            continue
        total, count = total + tensor.size, count + 1
        if tensor.name in plan.forward.added:  # it is told with what it is added to
            continue
        name = tensor.name + (f" = {', '.join(tensor.tied_to)}" if tensor.tied_to else "")
        state = plan.selection.skipped.get(tensor.name, "-")
        if tensor.name in ranks:
            state = f"adapter of rank {ranks[tensor.name]}"
        elif tensor.name in chosen:
            state = "train" if chosen[tensor.name] == DEFAULT_GROUP else f"train ({chosen[tensor.name]})"
        rows.append((escape(name), " × ".join(map(str, tensor.shape)) or "scalar", f"{tensor.size:,}", state))
    made = table("parameter", "shape", ">values", "")
    told = ("train", "adapter")
    shown = rows if len(rows) <= _MAX_ROWS else _around_changes(rows)
    for row in shown:
        made.add_row(*row, style="" if row[3].startswith(told) else "dim")
    console().print(made)
    trained = sum(t.size for t in plan.forward.tensors if t.name in chosen)
    say(f"{len(chosen)} of {count} parameters are trained: {trained:,} of {total:,} values ({trained / total:.1%}).")
    for group in plan.selection.parameter_groups:
        count = sum(name == group.name for name in chosen.values())
        say(f"Group {group_text(group)} ({count} parameters).")
    if plan.selection.batch_norms:
        names = ", ".join(layer.name for layer in plan.selection.batch_norms)
        say(f"BatchNorm layers that train their running statistics: {names}.")


def block_list(plan: Plan) -> None:
    """The blocks that a method found, how much of each is trained, and the head."""
    if plan.blocks is None:
        return
    sizes = {t.name: t.size for t in plan.forward.tensors}
    made = table("block", ">parameters", ">values", "")
    for block, names in [*plan.blocks.blocks.items(), ("head", plan.blocks.head)]:
        trained = sum(name in plan.selection.groups for name in names)
        adapted = sum(merge.target in names for merge in plan.forward.added.values()) // 2
        parts = [f"train {trained}"] if trained else []
        parts += [f"adapters at {adapted}"] if adapted else []
        values = f"{sum(sizes[name] for name in names):,}"
        made.add_row(escape(block), str(len(names)), values, ", ".join(parts) or "-", style="" if parts else "dim")
    console().print(made)


def _around_changes(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """First and last of each run of rows with the same state; what lies between is counted."""
    shown: list[tuple[str, str, str, str]] = []
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][3] != rows[start][3]:
            run = rows[start:i]
            shown += run if len(run) <= 4 else [run[0], (f"… {len(run) - 2} more", "", "", run[0][3]), run[-1]]
            start = i
    return shown


def artifact_summary(directory: Path, manifest: Manifest) -> None:
    """What was written, and the next command."""
    size = sum((directory / name).stat().st_size for name in manifest.files)
    say(f"Wrote {directory} ({len(manifest.files) + 1} files, {size_text(size)}, generator {manifest.generator}).")
    from onnxft.runtime.artifact import feature_bytes

    if manifest.features:
        say(f"The frozen part is a graph of its own, which hands on {size_text(feature_bytes(manifest))} a row.")
    elif manifest.whole:
        say(f"The frozen part is no graph of its own: {manifest.whole}")
    if manifest.frozen_weights is not None:
        say(f"{frozen_text(manifest.frozen_weights)}.")
    say(f"Next: onnxft train {directory} --data DATA.npz")


def frozen_text(frozen: FrozenWeights) -> str:
    """How frozen weights are stored, and what that changes, without the full stop."""
    kept = f"{size_text(frozen.bytes)} of {size_text(frozen.float32_bytes)} ({frozen.ratio:.0%})"
    errors = f"relative error of the weights {_error_text(frozen.weights)}, of the outputs on a random batch "
    outputs = "unknown: the model does not run on one" if frozen.outputs is None else _error_text(frozen.outputs)
    return f"{frozen.stored} frozen weights are stored in {frozen.precision}: {kept}; {errors}{outputs}"


def _error_text(error: RelativeError) -> str:
    return f"{error.max:.1e} at most, {error.mean:.1e} in the mean"
