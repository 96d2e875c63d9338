"""`onnxft setup`: make an environment that onnxft runs things in beside its own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("what", type=click.Choice(["ort-training"]), metavar="ort-training")
@click.option(
    "--at", "place", type=click.Path(path_type=Path), metavar="DIR",
    help="Where it is made [among the data of this user, where every command finds it].",
)  # fmt: skip
@click.option("--base", metavar="PYTHON", help="Interpreter that it is made from [this one, or one on PATH].")
@click.option("--cuda", is_flag=True, help="The package for CUDA 11.8, which Python 3.11 runs.")
def setup(what: str, place: Path | None, base: str | None, cuda: bool) -> None:
    """Make the environment of onnxruntime-training, and train a small network in it.

    It cannot live beside a current onnxruntime, so it has an environment of its own, in which onnxft starts a worker
    process. One that is there and works is left as it is.
    """
    from onnxft.ort_training_environment import PYTHON_VARIABLE, default_place, interpreter_of
    from onnxft.runtime.ort_training.setup import make_environment

    chosen = place or default_place()
    make_environment(chosen, base=base, cuda=cuda, progress=lambda message: click.echo(message, err=True))
    click.echo(f"The environment is at {chosen}.")
    if place is not None:
        click.echo(f"Name it to the other commands: export {PYTHON_VARIABLE}={interpreter_of(chosen.resolve())}")
    click.echo("Next: onnxft export SOURCE --generator ort-training")
