"""`onnxft inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxft.manifest import GraphRole, Manifest


@click.command("inspect")
@click.argument("what", metavar="DIR|MODEL.onnx", type=click.Path(path_type=Path))
def inspect(what: Path) -> None:
    """Show what an artifact holds, or which operators of a model can be differentiated.

    An artifact needs no onnx package; of a model only the operators are read, none is run.
    """
    if what.suffix == ".onnx" or what.is_file():
        _model(what)
    else:
        _artifact(what)


def _artifact(directory: Path) -> None:
    from rich.markup import escape

    from onnxft.cli.render import console, frozen_text, group_text, loss_text, say, table
    from onnxft.memory import size_text
    from onnxft.runtime.artifact import load_artifact, weight_bytes

    manifest = load_artifact(directory)
    options = "".join(f", {key}={value:g}" for key, value in manifest.optimizer.options.items())
    say(f"Artifact     {manifest.name} (generator {manifest.generator}, schema {manifest.schema_version})")
    say(f"Loss         {loss_text(manifest.loss)}")
    say(f"Optimizer    {manifest.optimizer.kind}{options}, weight_decay={manifest.optimizer.weight_decay:g}")
    for group in manifest.parameter_groups:
        say(f"Group        {group_text(group)}")
    say(f"Batch        {manifest.batch_size} rows")
    if manifest.recompute:
        say(f"Recompute    activations, {manifest.recompute} block{'s' * (manifest.recompute > 1)} at a time")
    if manifest.classes:
        say(f"Classes      {', '.join(manifest.classes)}")
    say(f"Built with   {', '.join(f'{package} {version}' for package, version in manifest.versions.items())}\n")

    parameters = table("trained parameter", "shape", "type", "group", ">values")
    for p in manifest.parameters:
        names = " = ".join((p.name, *p.tied_to))
        shape = " × ".join(map(str, p.shape)) or "scalar"
        parameters.add_row(escape(names), shape, p.dtype, escape(p.group), f"{p.size:,}")
    console().print(parameters)
    total = manifest.num_trainable + manifest.frozen_parameters
    say(f"{manifest.num_trainable:,} of {total:,} values are trained ({manifest.num_trainable / total:.1%}).\n")

    if manifest.frozen_weights is not None:
        say(f"{frozen_text(manifest.frozen_weights)}.\n")

    if manifest.buffers:
        names = ", ".join(dict.fromkeys(b.layer for b in manifest.buffers))
        say(f"BatchNorm layers that train their running statistics: {names}.\n")

    graphs = table("graph", "file", ">size", "precision", "provider", "inputs")
    for role, graph in sorted(manifest.every_graph, key=lambda pair: (pair[0], pair[1].file)):
        data = ", ".join(
            f"{p.name} {p.dtype}[{', '.join(map(str, p.shape))}]"
            for p in graph.inputs
            if p.role in ("input", "label", "feature", "random")
        )
        size = size_text((directory / graph.file).stat().st_size)
        graphs.add_row(role, escape(graph.file), size, graph.precision, graph.provider or "any", escape(data or "-"))
    console().print(graphs)

    if manifest.generator == "ort-training":
        _own_interfaces(manifest)
        memory = weight_bytes(directory, manifest)
        parts = ", ".join(f"{what} {size_text(size)}" for what, size in memory.items())
        say(f"\nMemory for weights and state: about {size_text(sum(memory.values()))} ({parts}).")
        say("Activations come on top.")
    else:
        _memory(directory, manifest)


def _memory(directory: Path, manifest: Manifest) -> None:
    """What `onnxft train` takes on the CPU, part by part: whole and divided batches, and either kind of graphs."""
    from onnxft.cli.render import console, say, table
    from onnxft.memory import size_text
    from onnxft.runtime.memory_estimate import MemoryModel, Use
    from onnxft.runtime.sizes import combined

    whole = manifest.batch_size
    model, batches = MemoryModel(directory, manifest), sorted({whole, max(whole // 2, 1), 1}, reverse=True)
    for recompute in sorted({False, manifest.recomputes()}):
        uses = [Use(accumulates=rows < whole, evaluates=True, saves=True, recompute=recompute) for rows in batches]
        estimates = [model.estimate(combined(manifest, rows, {}), use) for rows, use in zip(batches, uses, strict=True)]
        kind = ", activations computed again" if recompute else ""
        say(f"\nEstimated memory of a training run on cpu, smaller batches accumulated{kind}:")
        shown = table("part", *(f">{rows} row{'s' if rows > 1 else ''}" for rows in batches))
        for part in dict.fromkeys(part for estimate in estimates for part in estimate.parts):
            shown.add_row(part, *(size_text(estimate.parts.get(part, 0)) for estimate in estimates))
        shown.add_row("total", *(size_text(estimate.total) for estimate in estimates), style="bold")
        console().print(shown)
        if estimates[0].guessed:
            say(f"{estimates[0].guessed} values have a size that the graphs do not tell; their inputs' is taken.")


def _own_interfaces(manifest: Manifest) -> None:
    """What a program in any language feeds to onnxruntime-training, and gets from it."""
    from onnxft.cli.render import say

    training = manifest.graph("ort_training")
    standalone = not training.named("sample_weight")
    form = "standalone, the loss is the mean over a batch" if standalone else "onnxft's own loss, rows have weights"
    say(f"\nFor onnxruntime-training's own interfaces ({form}; arrays in this order):")
    steps: tuple[tuple[GraphRole, str], ...] = (("ort_training", "TrainStep"), ("ort_eval", "EvalStep"))
    for role, what in steps:
        graph = manifest.graphs[role]
        fed, given = (", ".join(p.name for p in ports) for ports in (graph.inputs, graph.outputs))
        say(f"  {what}: {fed} → {given}")
    if "max_norm" in manifest.optimizer.options:
        say(f"  The optimizer clips all gradients together at the norm {manifest.optimizer.options['max_norm']:g}.")
    if manifest.runtime_random:
        say(
            f"  The runtime draws for itself, so that no run is repeated exactly: {', '.join(manifest.runtime_random)}."
        )


def _model(path: Path) -> None:
    from rich.markup import escape

    from onnxft.cli.render import console, say, table
    from onnxft.grad.coverage import coverage

    meaning = {
        "rule": "has a rule",
        "lowered": "by others",
        "by nature": "no derivative",
        "not yet": "no rule yet",
        "other domain": "not ONNX",
    }
    found = coverage(path)
    operators = table("operator", ">nodes", "derivative", "")
    for op in found:
        name = f"{op.domain}::{op.op_type}" if op.domain else op.op_type
        style = "" if op.status in ("rule", "lowered") else "dim" if op.status == "by nature" else "bold"
        operators.add_row(escape(name), f"{op.count:,}", meaning[op.status], escape(op.reason), style=style)
    console().print(operators)
    lacking = [op.op_type for op in found if op.status in ("not yet", "other domain")]
    say(f"{len(found)} operators, {len(found) - len(lacking)} of them covered.")
    if lacking:
        say(f"Not covered: {', '.join(lacking)}. Parameters can be trained where these do not lie behind them.")
