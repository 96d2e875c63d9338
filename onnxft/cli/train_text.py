"""What `onnxft train` prints before and after a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxft.training.outcome import Run, Start


def banner(start: Start) -> None:
    """What is known before the first step: what was asked for and what runs."""
    from onnxft.data.labels import listed
    from onnxft.runtime.batches import why_unweighted

    manifest, placement, config = start.manifest, start.placement, start.config
    total = manifest.num_trainable + manifest.frozen_parameters
    click.echo(f"artifact   {manifest.name} ({manifest.generator}, {manifest.optimizer.kind}, {manifest.loss.kind})")
    provider, *graphs = placement.lines()
    click.echo(f"provider   {provider}")
    for line in graphs:
        click.echo(f"           {line}")
    click.echo(f"trainable  {manifest.num_trainable:,} / {total:,} ({manifest.num_trainable / total:.1%})")
    click.echo(f"threads    {config.threads or 'the choice of the runtime'}")
    if manifest.recomputes():
        click.echo(f"backward   activations are {'computed again' if start.recomputes else 'kept'}")
    size, processes = start.batch_size, start.processes
    each = f" ({size} in each of {processes} processes)" if processes > 1 else ""
    click.echo(f"data       {_rows(start.rows, start.data)} in {start.batches} batches of {size * processes}{each}")
    if start.classes:
        click.echo(f"classes    {len(start.classes)}: {listed(start.classes)}")
    if start.evaluated is not None:
        click.echo(f"evaluated  {_rows(start.rows_evaluated, start.evaluated)}")
    if start.weights is not None:
        click.echo(f"weights    {start.weights}")
    if start.taken_up is not None:
        click.echo(f"taken up   {start.taken_up}")
    if start.rows_left_out:
        click.echo(
            f"           {start.rows_left_out} rows of each epoch are left out: {why_unweighted(manifest)}, "
            f"so a short batch cannot be padded"
        )
    if start.memory is not None:
        click.echo(f"memory     {start.memory.line}")
    click.echo(f"run        {start.directory}")


def summary(run: Run) -> None:
    """What changed, and what was written."""
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
    if run.memory:
        click.echo(f"\nmemory     {run.memory}")
    click.echo("\nwritten")
    for file in run.files:
        click.echo(f"  {run.directory / file}")
    if run.end != "interrupted" and "curves.png" not in run.files:
        click.echo("  (no curves.png: `pip install onnxft[plot]` brings matplotlib)")


def _rows(rows: int | None, source: str) -> str:
    return source if rows is None else f"{rows:,} rows of {source}"


def quoted(path: Path | str | None) -> str:
    """For a command that can be copied."""
    return shlex.quote(str(path))
