"""`onnxft train`: fine-tune an artifact on a data set."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxft.cli.options import config_option, dimension_option
from onnxft.errors import ExitStatus

if TYPE_CHECKING:
    from onnxft.training.loop import Run, Start

PATH = click.Path(path_type=Path)


@click.command(epilog="Defaults stand in brackets.")
@click.argument("artifact", type=PATH, metavar="DIR")
@click.option("--data", type=PATH, required=True, metavar="FILE.npz", help="Rows to train on: inputs by name, labels.")
@click.option("--val", type=PATH, metavar="FILE.npz", help="Rows to evaluate on [those of --data].")
@click.option("--provider", metavar="NAME", help="Execution provider [cpu].")
@click.option("--threads", type=int, metavar="N", help="Threads inside an operator [the runtime's choice].")
@click.option("--epochs", type=int, metavar="N", help="Passes over the data [10].")
@click.option("--lr", type=float, metavar="X", help="Learning rate [0.001].")
@click.option("--weight-decay", type=float, metavar="X", help="Weight decay [the artifact's].")
@click.option("--schedule", metavar="NAME", help="constant, linear, cosine or onecycle [constant].")
@click.option(
    "--warmup", type=float, metavar="F", help="Part of the updates in which the rate rises [0; onecycle 0.3]."
)
@click.option("--accumulate", type=int, metavar="N", help="Batches for one update [1].")
@click.option("--clip-norm", type=float, metavar="X", help="Greatest norm of all gradients together [not clipped].")
@click.option("--clip-value", type=float, metavar="X", help="Greatest absolute value in a gradient [not clipped].")
@click.option("--batch-size", type=int, metavar="N", help="Rows of a batch [the artifact's].")
@dimension_option("Size of an open dimension besides the batch [the artifact's]. Repeatable.")
@click.option("--seed", type=int, metavar="N", help="Seed of shuffling and random masks [0].")
@click.option("--metric", metavar="NAME", help="Chooses the best weights [balanced_accuracy; loss for values].")
@click.option("--patience", type=int, metavar="N", help="Stop after N epochs without a better metric [never].")
@click.option("--resume", is_flag=True, help="Continue a run from its last checkpoint, with its options.")
@click.option("--run", "run_dir", type=PATH, metavar="DIR", help="Directory of the run [runs/NAME-N].")
@config_option
def train(
    artifact: Path, data: Path, val: Path | None, resume: bool, run_dir: Path | None, **options: Any
) -> None:  # fmt: skip
    """Fine-tune the artifact DIR and record the run in a directory.

    Ctrl-C ends after the step in progress with a checkpoint (exit code 130).
    """
    from onnxft.training.loop import run as run_training
    from onnxft.training.progress import progress_for

    given = {name: value for name, value in options.items() if value is not None and value != {}}
    run = run_training(
        artifact, data, given, val=val, run_dir=run_dir, resume=resume, progress=progress_for(), announce=_banner
    )
    _summary(run)
    files = f" --data {_quoted(data)}" + (f" --val {_quoted(val)}" if val else "")
    if run.end == "interrupted":
        click.echo(f"Next: onnxft train {_quoted(artifact)}{files} --resume --run {_quoted(run.directory)}")
        sys.exit(ExitStatus.INTERRUPTED)
    click.echo(f"Next: onnxft bench {_quoted(artifact)} --provider {run.provider}")


def _banner(start: Start) -> None:
    from onnxft.runtime.batches import why_unweighted

    manifest, placement, config = start.manifest, start.placement, start.config
    total = manifest.num_trainable + manifest.frozen_parameters
    click.echo(f"artifact   {manifest.name} ({manifest.generator}, {manifest.optimizer.kind}, {manifest.loss.kind})")
    click.echo(f"provider   {placement.requested} -> {placement.obtained}")
    for role, nodes in placement.nodes.items():
        click.echo(f"  {role:<9}{', '.join(f'{count} nodes on {name}' for name, count in nodes.items())}")
    click.echo(f"trainable  {manifest.num_trainable:,} / {total:,} ({manifest.num_trainable / total:.1%})")
    click.echo(f"threads    {config.threads or 'the choice of the runtime'}")
    click.echo(f"data       {start.rows} rows in batches of {start.batch_size}")
    if start.rows_left_out:
        click.echo(
            f"           {start.rows_left_out} rows of each epoch are left out: {why_unweighted(manifest)}, "
            f"so a short batch cannot be padded"
        )
    click.echo(f"run        {start.directory}")


def _summary(run: Run) -> None:
    if run.end == "interrupted":
        click.echo(f"Interrupted in epoch {run.epochs + 1}; the checkpoint holds every step made.")
    elif run.end == "early":
        click.echo(f"Stopped after epoch {run.epochs}: no better {run.metric} since epoch {run.best_epoch}.")
    where = "validation data" if run.split == "val" else "the training data itself: give --val to learn about new data"
    click.echo(f"\n{'on ' + where}")
    click.echo(f"{'':<20}{'before':>10}{f'epoch {run.best_epoch}':>12}")
    for name, value in run.after.items():
        mark = "  <- chose the best epoch" if name == run.metric else ""
        click.echo(f"{name:<20}{run.before[name]:>10.4g}{value:>12.4g}{mark}")
    if run.best_epoch == 0:
        click.echo(f"No epoch was better than the start in {run.metric}: the best weights are those before training.")
    click.echo("\nwritten")
    for file in run.files:
        click.echo(f"  {run.directory / file}")
    if run.end != "interrupted" and "curves.png" not in run.files:
        click.echo("  (no curves.png: `pip install onnxft[plot]` brings matplotlib)")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
