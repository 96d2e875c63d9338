"""`onnxft train --find-lr`: what the learning-rate range test prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

WORDS = "onnxft.words"
"""Key of the words of the command line in click's `meta`."""


def show_lr_range(artifact: Path | None, data: Any, given: dict[str, Any], val: Any, directory: Path | None) -> None:
    """Run the test, say what it proposes, and print the command that trains with it."""
    from onnxft.training.lr_range import find_lr
    from onnxft.training.progress import number, progress_for

    found, out = find_lr(artifact, data, given, val=val, directory=directory, progress=progress_for())
    end = "where the loss diverged" if found.diverged else "the highest one"
    tried = f"{found.rates[0]:.1e} to {found.rates[-1]:.1e}, {end}" if len(found.rates) else "none: the loss diverged"
    click.echo(f"tried      {len(found.rates)} learning rates: {tried}")
    if found.proposed is None:
        click.echo("proposed   none: no rate lowered the loss by more than it scatters by itself")
    else:
        click.echo(f"proposed   {number(found.proposed)}: the loss falls steepest, or a tenth of where it is least")
    click.echo("\nwritten")
    for file in sorted(out.iterdir()):
        click.echo(f"  {file}")
    if not (out / "lr_range.png").exists():
        click.echo("  (no lr_range.png: `pip install onnxft[plot]` brings matplotlib)")
    if found.proposed is not None:
        words = _without(click.get_current_context().meta[WORDS], "--find-lr", 0)
        words = _without(_without(words, "--lr", 1), "--run", 1)
        click.echo(f"Next: onnxft train {' '.join(map(shlex.quote, words))} --lr {found.proposed:.2g}")


def _without(words: list[str], flag: str, values: int) -> list[str]:
    """The words without an option, which `values` words follow."""
    kept, left = [], iter(words)
    for word in left:
        if word == flag:
            for _ in range(values):
                next(left, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept
