"""`onnxft train`: fine-tune an artifact on a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxft.cli.lr_range import WORDS, show_lr_range
from onnxft.cli.options import (
    Sizes,
    Words,
    config_option,
    dimension_option,
    input_columns,
    key_values,
    preprocess_option,
    provider_options_option,
)
from onnxft.cli.train_text import banner, quoted, summary
from onnxft.errors import ExitStatus

PATH = click.Path(path_type=Path)


class _Remembering(click.Command):
    """Keeps the words of the command line, so that the next command can be printed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Remembering, epilog="Defaults stand in brackets.")
@click.argument("artifact", type=PATH, metavar="DIR", required=False)
@click.option(
    "--data", metavar="DATA", help="Rows to train on: a folder of pictures, .npz, .csv, .tsv, .jsonl, or CODE."
)
@click.option("--val", metavar="DATA", help="Rows to evaluate on [those of --split, else of --data].")
@click.option("--split", type=float, metavar="F", help="Part of --data that is held back to evaluate on [none].")
@click.option(
    "--input-column", "input_columns", multiple=True, metavar="[INPUT=]COL,...", callback=input_columns,
    help="Columns of a table for a model input [those of its name]. Repeatable.",
)  # fmt: skip
@click.option(
    "--label-column", "label_columns", type=Words(), metavar="COL,...", help="Columns with the labels [labels]."
)
@click.option("--classes", type=Words(), metavar="A,B,...", help="Names of the classes in order [the artifact's].")
@preprocess_option("How pictures are made: size, resize, mean, std, color, ... [the artifact's]. Repeatable.")
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json [the artifact's].")
@click.option("--buckets", type=Sizes(), metavar="N,N,...", help="Lengths of text that a batch may have [one length].")
@click.option("--balance/--no-balance", default=None, help="Draw every class equally often [no].")
@click.option("--augment", type=Words(), metavar="NAME,...", help="flip, vflip, crop, color, rotate [none].")
@click.option("--cache", metavar="WHERE", help="Keep features of the frozen part: auto, memory, disk, off [auto].")
@click.option("--cache-memory", metavar="SIZE", help="Memory that they may take: 512MB [a quarter of the machine's].")
@click.option("--memory-budget", metavar="SIZE", help="Divide batches so that the process takes no more [no limit].")
@click.option(
    "--recompute", metavar="WORD",
    help="Compute activations again instead of keeping them: auto, on, off [auto: where the artifact was exported so, "
    "with --memory-budget only where nothing else fits].",
)  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Threads that read batches ahead [1].")
@click.option("--provider", metavar="NAME", help="Execution provider; auto tries all and takes the fastest [cpu].")
@click.option("--precision", metavar="NAME", help="Of multiplications: float32, bfloat16, float16 [float32].")
@click.option("--device", type=int, metavar="N", help="Index among the provider's devices [0].")
@provider_options_option
@click.option("--strict/--no-strict", default=None, help="Refuse nodes on another provider [no].")
@click.option("--threads", type=int, metavar="N", help="Threads inside an operator [the runtime's choice].")
@click.option("--processes", type=int, metavar="N", help="This is one of N that mpirun starts, to train together [1].")
@click.option("--epochs", type=int, metavar="N", help="Passes over the data [10].")
@click.option("--lr", type=float, metavar="X", help="Learning rate [0.001].")
@click.option("--weight-decay", type=float, metavar="X", help="Weight decay [the artifact's].")
@click.option(
    "--lr-factor", "lr_factors", multiple=True, metavar="GROUP=X",
    callback=lambda ctx, param, pairs: key_values(pairs),
    help="Factor of a parameter group's learning rate [the artifact's]. Repeatable.",
)  # fmt: skip
@click.option(
    "--decay", "weight_decays", multiple=True, metavar="GROUP=X", callback=lambda ctx, param, pairs: key_values(pairs),
    help="Weight decay of a parameter group [the artifact's]. Repeatable.",
)  # fmt: skip
@click.option("--schedule", metavar="NAME", help="constant, linear, cosine, onecycle or step [constant].")
@click.option("--step-size", type=int, metavar="N", help="Epochs after which the schedule step lowers the rate.")
@click.option("--gamma", type=float, metavar="X", help="Factor of the schedule step [0.1].")
@click.option(
    "--warmup", type=float, metavar="F", help="Part of the updates in which the rate rises [0; onecycle 0.3]."
)
@click.option("--accumulate", type=int, metavar="N", help="Batches for one update [1].")
@click.option("--clip-norm", type=float, metavar="X", help="Greatest norm of all gradients together [not clipped].")
@click.option("--clip-value", type=float, metavar="X", help="Greatest absolute value in a gradient [not clipped].")
@click.option("--ema", type=float, metavar="X", help="Decay of a moving average that is evaluated and kept [none].")
@click.option("--weights", metavar="FILE|RUN", help="Weights to begin with: .safetensors, or the best of a run.")
@click.option("--adapter", metavar="DIR|FILE", help="Adapter to begin with: a folder of peft, or .onnx_adapter.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of a batch [the artifact's].")
@dimension_option("Size of an open dimension besides the batch [the artifact's]. Repeatable.")
@click.option("--seed", type=int, metavar="N", help="Seed of shuffling and random masks [0].")
@click.option(
    "--metric",
    metavar="NAME",
    help="Chooses the best weights [balanced_accuracy; macro_f1 of several labels; else loss].",
)
@click.option("--patience", type=int, metavar="N", help="Stop after N epochs without a better metric [never].")
@click.option("--tensorboard/--no-tensorboard", default=None, help="Write event files for TensorBoard [no].")
@click.option("--find-lr", is_flag=True, help="Train nothing: try rates, propose one, and draw the loss over them.")
@click.option(
    "--resume", is_flag=True, help="Continue --run (or the newest) with its options; DIR may be of another generator."
)
@click.option("--run", "run_dir", type=PATH, metavar="DIR", help="Directory of the run [runs/NAME-N].")
@config_option
def train(artifact: Path | None, find_lr: bool, resume: bool, run_dir: Path | None, **options: Any) -> None:
    """Fine-tune the artifact DIR and record the run in a directory.

    CODE is `package.module:name` or `file.py:name`, which yields batches {input: array}; it is taken from the command
    line alone. `--config runs/NAME/config.yaml` repeats a run, and then names DIR and DATA.
    `--find-lr` is the range test of the learning rate; it leaves --lr, --schedule and --warmup aside.
    Ctrl-C ends after the step in progress with a checkpoint (exit code 130).
    `mpirun -n N onnxft train ... --processes N` trains in N processes, each on --batch-size rows of every batch.
    """
    from onnxft.runtime.denormals import denormals_as_zero
    from onnxft.training.loop import run as run_training
    from onnxft.training.progress import progress_for

    given = {name: value for name, value in options.items() if value is not None and value not in ({}, [])}
    source = click.get_current_context().get_parameter_source
    # What stands in a file may name data, but no code.
    named = {name: given.pop(name, None) for name in ("data", "val") if source(name) is ParameterSource.COMMANDLINE}
    click.get_current_context().with_resource(denormals_as_zero())
    if find_lr:
        if resume:
            raise click.UsageError("--find-lr trains nothing that could be resumed: leave one of the two out.")
        show_lr_range(artifact, named.get("data"), given, named.get("val"), run_dir)
        return
    run = run_training(
        artifact, named.get("data"), given, val=named.get("val"), run_dir=run_dir, resume=resume,
        progress=progress_for(), announce=banner,
    )  # fmt: skip
    if run.process:  # the first one tells
        sys.exit(ExitStatus.INTERRUPTED if run.end == "interrupted" else ExitStatus.OK)
    summary(run)
    place = quoted(run.config.artifact)
    if run.end == "interrupted":
        data = [f" --{name} {quoted(value)}" for name, value in named.items() if value is not None]
        start = f"mpirun -n {run.config.processes} " if (run.config.processes or 1) > 1 else ""
        click.echo(f"Next: {start}onnxft train {place}{''.join(data)} --resume --run {quoted(run.directory)}")
        sys.exit(ExitStatus.INTERRUPTED)
    click.echo(f"Next: onnxft bench {place} --provider {run.provider}")
